"""Three times more load than can be answered: what is answered, and how fast the rest is refused.

A gateway on a core of its own; a real Redis and an open-loop generator on another. Once the engine
is the bottleneck (a stub of 300 requests a second), once the gateway itself (a stub that answers at
once). For each: capacity by search, confirmed by longer trials; 0.7 x capacity; then 60 s at 3 x
and 10 s at 0.7 x again. The peak is the most that was answered in a trial of CONFIRM_S, at capacity
or with somewhat more, before and after the 60 s.

Idle cores are kept awake: the host of a virtual machine gives a core that went to sleep back late.
Seconds of which the host took a part all the same are told apart, and what is in them is shown but
not judged, except that nothing may be late, failed or degraded in any second.
"""

import asyncio
import sys
import tempfile
from functools import partial
from pathlib import Path

import msgspec

from loadtest.material import MARKETPLACE, read_material
from loadtest.outcome import Outcome
from loadtest.run import Latency, Run
from loadtest.schedule import Stage
from loadtest.search import Bounds, search
from loadtest.traffic import Mix, Traffic
from service.features.embedded import embedded_server
from tests.bench.awake import idle_polls
from tests.bench.overload_trial import GOAL, Trial, attempt, undisturbed
from tests.bench.overload_world import Gateway, gateway, load, one_core
from tests.bench.timing import report

MIX = Mix(bad=0, events=0)
SEARCH_S, CONFIRM_S, CALM_S = 4, 15, 15
OVER_S, AFTER_S, RECOVERY_S = 60, 10, 2
STEP_DOWN = 0.9
"""From a rate that a longer trial does not confirm to the next."""

SATURATED = 1.2
"""Of capacity: enough for somebody to wait always, too little for refusals to cost much."""

LOWEST = 100.0
"""Requests a second that the search begins with."""

BACKEND_RATE = 300.0


class Load:
    """Trials on one gateway, each shown as it ends."""

    def __init__(self, of: Gateway, traffic: Traffic):
        self._of, self._traffic = of, traffic

    def __call__(self, label: str, *stages: Stage, most: int = 2) -> Trial:
        """The first undisturbed of at most so many, or else the least disturbed."""

        def once() -> Trial:
            trial = attempt(self._of, self._traffic, *stages)
            show(label, trial)
            return trial

        return undisturbed(once, most)

    def capacity(self) -> tuple[float, Trial, Trial]:
        """Requests a second that are answered as the goal wants; the longer trials that it meets
        the goal in, and that SATURATED times as many do not."""

        def judged(at: float) -> Run:
            trial = self(f"search, {at:.0f}/s", Stage(SEARCH_S, at))
            return msgspec.structs.replace(trial.run, missed=trial.missed)

        found = search(judged, Bounds(low=LOWEST, high=8000, resolution=SATURATED - 1, repeats=1))
        if found.stopped:
            print(f"      the search ended early: {found.stopped}")  # noqa: T201
        rate = found.rate or LOWEST
        while (met := self(f"confirm, {rate:.0f}/s", Stage(CONFIRM_S, rate))).missed:
            rate *= STEP_DOWN
        while not (above := self.saturated(rate)).missed:
            rate, met = SATURATED * rate, above
        return rate, met, above

    def saturated(self, capacity: float) -> Trial:
        """With somewhat more than capacity."""
        at = SATURATED * capacity
        return self(f"saturated, {at:.0f}/s", Stage(CONFIRM_S, at))


def show(label: str, trial: Trial) -> None:
    """Lines of a trial: all of it, and the seconds that were ours where that is not all."""
    ours, run = trial.ours, trial.run
    print(  # noqa: T201  # a benchmark's output
        f"      {label}: gateway {trial.gateway_cpu:.0%} of a core, generator "
        f"{run.generator.cpu_share:.0%}, its lag p99 {run.generator.lag_p99_ms:.1f} ms; others "
        f"{trial.others_cpu:.0%}; "
        f"the host took {1e3 * trial.taken_s.mean():.0f} ms a second, much in "
        f"{len(trial.seconds) - len(ours.seconds)} of {len(trial.seconds)}"
    )
    for name, part in (("all", trial), ("ours", ours)):
        if name == "all" or len(ours.seconds) < len(trial.seconds):
            counts = {o.value: part.count(o) for o in Outcome if part.count(o)}
            print(  # noqa: T201
                f"        {name}: {part.goodput:.0f}/s answered {counts}; served "
                f"{_told(part.served)}; refused {_told(part.refused)}"
            )
    if why := {o: run.reasons[o] for o in (Outcome.DEGRADED, Outcome.LATE) if o in run.reasons}:
        print(f"        why: {why}")  # noqa: T201
    for told in trial.around(Outcome.DEGRADED, Outcome.LATE):
        print(f"        {told}")  # noqa: T201
    sys.stdout.flush()


def _told(latency: Latency | None) -> str:
    return "-" if latency is None else f"p50 {latency.p50:.1f}, p99 {latency.p99:.1f} ms"


def bottleneck(name: str, run: Load, least: float) -> list[bool]:
    """Every bar for one bottleneck; `least` of the peak goodput is kept at 3 x."""
    run("warm", Stage(3, 100), most=1)
    capacity, met, above = run.capacity()
    calm = run("0.7 x capacity", Stage(CALM_S, 0.7 * capacity)).ours
    whole = run(
        "3 x capacity, then 0.7 x",
        Stage(OVER_S, 3 * capacity),
        Stage(AFTER_S, 0.7 * capacity),
    )
    peak = max(trial.ours.goodput for trial in (met, above, run.saturated(capacity)))
    print(f"{name}: capacity {capacity:.0f}/s, peak goodput {peak:.0f}/s")  # noqa: T201

    over = whole.within(0, OVER_S).ours
    after = whole.within(OVER_S + RECOVERY_S, OVER_S + AFTER_S).ours
    left = len(whole.ours.seconds) / len(whole.seconds)
    worst = max((s.p99 for s in map(_served, after.each) if s), default=float("inf"))
    assert calm.served is not None, calm
    assert over.refused is not None, over
    at_most = partial(report, at_least=False)
    return [
        at_most(f"{name}: p99 / p50 at 0.7 x", calm.served.p99 / calm.served.p50, 4),
        at_most(f"{name}: late at 0.7 x", calm.count(Outcome.LATE), 0),
        report(f"{name}: seconds at 3 x and after that the host left, share", left, 0.5),
        report(f"{name}: goodput / peak at 3 x", over.goodput / peak, least),
        at_most(f"{name}: p99 of refusals, ms", over.refused.p99, 5),
        at_most(
            f"{name}: late, failed, degraded",
            whole.count(Outcome.LATE, Outcome.FAILED, Outcome.DEGRADED),
            0,
        ),
        at_most(
            f"{name}: unanswered 2 s after",
            after.count(*(o for o in Outcome if o != Outcome.ANSWERED)),
            0,
        ),
        at_most(f"{name}: worst p99 of a second then, ms", worst, GOAL.p99_ms),
    ]


def _served(trial: Trial) -> Latency | None:
    return trial.served


def main() -> int:
    """Print every figure; the number of bars missed."""
    held: list[bool] = []
    with (
        idle_polls() as polls,
        one_core() as other,
        tempfile.TemporaryDirectory(prefix="mtgr-") as directory,
        embedded_server(Path(directory)) as redis_url,
    ):
        print(f"idle cores are {'kept awake' if polls else 'NOT kept awake: that takes root'}")  # noqa: T201
        asyncio.run(load(redis_url))
        redis_pid = int((Path(directory) / "valkey.pid").read_text())
        for name, rate, least in (("engine of 300/s", BACKEND_RATE, 0.9), ("gateway", 0.0, 0.75)):
            if len(sys.argv) > 1 and sys.argv[1] not in name:
                continue
            traffic = Traffic(read_material(MARKETPLACE), MIX)
            with gateway(redis_url, redis_pid, rate, other) as of:
                held += bottleneck(name, Load(of, traffic), least)
    return held.count(False)


if __name__ == "__main__":
    sys.exit(main())
