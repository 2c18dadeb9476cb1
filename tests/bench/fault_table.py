"""One fault under steady load, and what became of every request.

A fault begins and ends during the run; afterwards the model must rank with all features again.
*Unexplained* is whatever is late or failed, and every degraded answer or refusal with a reason
that is not of this fault.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Timer
from time import monotonic

import httpx

from loadtest.material import MARKETPLACE, read_material
from loadtest.open_loop import Limits, generate
from loadtest.outcome import Outcome
from loadtest.samples import Samples
from loadtest.schedule import Stage, schedule
from loadtest.traffic import Mix, Traffic
from tests.bench.fault_world import World, world

RECOVERY_S = 20.0
"""Longest time until all is well again: a breaker's longest pause, and a server's start."""

CROSS = {
    "distance_km": 1.2,
    "eta_minutes": 31,
    "price_ratio": 0.9,
    "category_share": 0.2,
    "orders_at_item": 3,
    "category_at_hour": 0.4,
}

Act = Callable[[World], None]


@dataclass(frozen=True)
class Fault:
    """A fault, what it may cause, and a metric that must have counted it."""

    name: str
    begin: Act
    end: Act
    reasons: set[str]
    counted: str = ""


@dataclass(frozen=True)
class Load:
    """What comes meanwhile: a fault begins after `before_s` and lasts `during_s`."""

    before_s: float = 2.0
    during_s: float = 3.0
    after_s: float = 5.0
    per_s: float = 30.0
    deadline_ms: int = 500
    also: frozenset[str] = frozenset()
    """Reasons that are explained by the machine."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    outcomes: dict[str, int]
    reasons: dict[str, dict[str, int]]
    unexplained: list[str]
    worst_ms: float

    def __str__(self) -> str:
        counts = " ".join(f"{self.outcomes[outcome]:6}" for outcome in Outcome)
        causes = {why: n for each in self.reasons.values() for why, n in each.items()}
        told = ", ".join(f"{n} {why}" for why, n in causes.items())
        return f"{self.fault:30}{counts}{len(self.unexplained):12}{self.worst_ms:10.0f}  {told}"


HEAD = f"{'fault':30}{' '.join(f'{o[:6]:>6}' for o in Outcome)}{'unexplained':>12}{'worst ms':>10}"


def suffer(world: World, fault: Fault, load: Load) -> Row:
    """Load through a fault's beginning and end, and until all is well again."""
    traffic = Traffic(read_material(MARKETPLACE), Mix(bad=0.02, deadline_ms=load.deadline_ms))
    failures: list[BaseException] = []

    def acting(act: Act) -> None:
        try:
            act(world)
        except BaseException as error:
            failures.append(error)
            raise

    timers = [
        Timer(load.before_s, acting, [fault.begin]),
        Timer(load.before_s + load.during_s, acting, [fault.end]),
    ]
    for timer in timers:
        timer.start()
    seconds = load.before_s + load.during_s + load.after_s
    plan = schedule([Stage(seconds, load.per_s)], "poisson", most=100_000)
    limits = Limits(give_up_ms=4.0 * load.deadline_ms)
    samples = generate(world.url, traffic, plan, limits).samples
    for timer in timers:
        timer.join()
    assert not failures, failures
    unexplained = list(_unexplained(samples, fault, load.also))
    if not recovers(world):
        unexplained.append("it does not recover")
    if fault.counted and not world.counted(fault.counted):
        unexplained.append(f"{fault.counted} was not counted")
    return Row(
        fault.name,
        samples.outcomes(),
        samples.reasons(),
        unexplained,
        float(samples.latency_ms[~samples.having([Outcome.FAILED])].max(initial=0.0)),
    )


def _unexplained(samples: Samples, fault: Fault, also: frozenset[str]) -> Iterator[str]:
    """What should not have been."""
    killed = fault.name in ("gateway killed", "one of two workers killed")
    for outcome, reasons in samples.reasons().items():
        for reason, count in reasons.items():
            gone = reason.startswith(("no connection", "connection closed", "no answer"))
            explained = reason in fault.reasons | also or (killed and gone)
            if not explained and outcome != Outcome.INVALID:
                yield from [f"{outcome}: {reason}"] * count


def recovers(world: World) -> bool:
    """Whether, within RECOVERY_S, the model ranks with all features again."""
    until = monotonic() + RECOVERY_S
    body = {
        "user_id": "u00017",
        "deadline_ms": 2000,
        "context": {"hour": 12, "weekday": 3, "place": 1},
        "candidates": [{"item_id": 10001, "features": CROSS}],
    }
    while monotonic() < until:
        answer = httpx.post(f"{world.url}/v1/rank", json=body)
        if answer.status_code == 200 and answer.json()["reason"] is None:
            return True
    return False


def table(
    faults: list[Fault], load: Load, with_triton: bool = False, workers: int = 1
) -> list[Row]:
    """A row a fault, printed as it comes."""
    rows = []
    with world(with_triton, workers) as served:
        suffer(served, Fault("warm", lambda w: None, lambda w: None, set()), Load(0, 0, 2))
        for fault in faults:
            rows.append(suffer(served, fault, load))
            print(rows[-1], flush=True)  # noqa: T201  # a benchmark's output
            for what in sorted(set(rows[-1].unexplained)):
                print(f"    unexplained: {what}")  # noqa: T201
    return rows
