"""One fault under steady load, and what became of every request.

A fault begins and ends during the run; afterwards the model must rank with all features again.
*Unexplained* is whatever is late or failed, and every degraded answer or refusal with a reason
that is not of this fault. Counted apart as *stalled* is what was degraded or refused, in time,
while the event loops from the caller to Redis waited for a core, as the kernel counts it, for about
as long as Redis is given: the gateway cannot tell that from a slow Redis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Timer
from time import monotonic

import httpx
import numpy as np

from loadtest.material import MARKETPLACE, read_material
from loadtest.open_loop import Limits, generate
from loadtest.outcome import Outcome
from loadtest.samples import Mask, Samples
from loadtest.schedule import Stage, schedule
from loadtest.traffic import Mix, Traffic
from tests.bench.fault_world import World, world
from tests.bench.stalls import Stall, waited_in, watched

STALL_S = 0.015
"""Waits for a core that make Redis late: of its 20 ms, an answer takes 5 at most."""

STALLED = {"features_timeout", "features_remembered", "429 overloaded", "429 expired"}
"""What comes of them."""

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
    stalled: int
    """Degraded or refused while the machine stalled."""
    unexplained: list[str]
    worst_ms: float

    def __str__(self) -> str:
        counts = " ".join(f"{self.outcomes[outcome]:6}" for outcome in Outcome)
        causes = {why: n for each in self.reasons.values() for why, n in each.items()}
        told = ", ".join(f"{n} {why}" for why, n in causes.items())
        odd = f"{self.stalled:9}{len(self.unexplained):12}"
        return f"{self.fault:30}{counts}{odd}{self.worst_ms:10.0f}  {told}"


HEAD = (
    f"{'fault':30}{' '.join(f'{o[:6]:>6}' for o in Outcome)}"
    f"{'stalled':>9}{'unexplained':>12}{'worst ms':>10}"
)


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
    with watched() as stalls:
        run = generate(world.url, traffic, plan, limits)
    samples = run.samples
    for timer in timers:
        timer.join()
    assert not failures, failures
    odd, stalled = _odd(samples, fault, load.also), _stalled(samples, run.start, stalls)
    unexplained = [
        f"{outcome}: {reason}"
        for outcome, reasons in samples.reasons(odd & ~stalled).items()
        for reason, count in reasons.items()
        for _ in range(count)
    ]
    if not recovers(world):
        unexplained.append("it does not recover")
    if fault.counted and not world.counted(fault.counted):
        unexplained.append(f"{fault.counted} was not counted")
    return Row(
        fault.name,
        samples.outcomes(),
        samples.reasons(),
        int((odd & stalled).sum()),
        unexplained,
        float(samples.latency_ms[~samples.having([Outcome.FAILED])].max(initial=0.0)),
    )


def _odd(samples: Samples, fault: Fault, also: frozenset[str]) -> Mask:
    """[N] what neither the fault nor the load explains."""
    killed = fault.name in ("gateway killed", "one of two workers killed")

    def explained(reason: str) -> bool:
        gone = reason.startswith(("no connection", "connection closed", "no answer"))
        return not reason or reason in fault.reasons | also or (killed and gone)

    unclear = np.array([not explained(reason) for reason in samples.why.tolist()], bool)
    return unclear & ~samples.having([Outcome.INVALID])


def _stalled(samples: Samples, start: float, stalls: list[Stall]) -> Mask:
    """[N] what was degraded or refused, in time, while the machine stalled."""
    sent = start + samples.due_s
    done = sent + samples.latency_ms / 1e3
    waited = [waited_in(stalls, *span) for span in zip(sent, done, strict=True)]
    in_time = samples.having([Outcome.DEGRADED, Outcome.REFUSED])
    return in_time & np.isin(samples.why, list(STALLED)) & (np.array(waited) >= STALL_S)


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


def table(faults: list[Fault], load: Load, triton_by: str = "", workers: int = 1) -> list[Row]:
    """A row a fault, printed as it comes."""
    rows = []
    with world(triton_by, workers) as served:
        suffer(served, Fault("warm", lambda w: None, lambda w: None, set()), Load(0, 0, 2))
        for fault in faults:
            rows.append(suffer(served, fault, load))
            print(rows[-1], flush=True)  # noqa: T201  # a benchmark's output
            for what in sorted(set(rows[-1].unexplained)):
                print(f"    unexplained: {what}")  # noqa: T201
            if rows[-1].unexplained and served.triton is not None:
                last_words = served.triton.log.read_text(errors="replace").splitlines()[-20:]
                print("    Triton's log ends with:", *last_words, sep="\n        ")  # noqa: T201
    return rows
