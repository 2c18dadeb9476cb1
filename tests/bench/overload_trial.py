"""One trial of an overload: what became of its requests, and which seconds the host left to us."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from loadtest.goal import Goal
from loadtest.open_loop import Limits, generate
from loadtest.outcome import SERVED, Outcome
from loadtest.run import Latency, Run, summarize
from loadtest.samples import Mask
from loadtest.schedule import Stage, schedule
from loadtest.traffic import Traffic
from tests.bench.overload_world import Gateway
from tests.bench.stolen import EVERY_S, MOST_S, looking, taken, waited

GOAL = Goal(p99_ms=100, unserved=0.01)
LIMITS = Limits(connections=512)


@dataclass(frozen=True)
class Trial:
    """Requests due in some seconds of a trial. Of N, in columns."""

    run: Run
    """The whole trial."""
    due_s: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    outcomes: NDArray[np.str_]
    taken_s: NDArray[np.float64]
    """[S] what the host took of each second."""
    redis_waited_s: NDArray[np.float64]
    """[S] the most that Redis waited for its core within EVERY_S of each second."""
    seconds: NDArray[np.intp]
    """[S'] which of them are looked at."""
    gateway_cpu: float
    """Share of its core that the gateway used, over the whole trial."""
    others_cpu: float
    """Share of a core that processes used which are none of the trial's."""

    def within(self, start: int, end: int) -> Self:
        """The seconds from `start` to before `end`."""
        return self._only(self.seconds[(self.seconds >= start) & (self.seconds < end)])

    @property
    def ours(self) -> Self:
        """The seconds that the host left to us."""
        return self._only(self.seconds[self.taken_s[self.seconds] <= MOST_S])

    @property
    def each(self) -> list[Self]:
        """Second by second."""
        return [self._only(self.seconds[i : i + 1]) for i in range(len(self.seconds))]

    @property
    def missed(self) -> list[str]:
        """What of the goal was missed, in words: in our seconds, if there are any."""
        judged = self.ours if len(self.ours.seconds) else self
        counts = {outcome.value: judged.count(outcome) for outcome in Outcome}
        return GOAL.missed(counts, None if judged.served is None else judged.served.p99)

    @property
    def goodput(self) -> float:
        """Answers of the model within the deadline, a second."""
        return self.count(Outcome.ANSWERED) / max(1, len(self.seconds))

    @property
    def served(self) -> Latency | None:
        """Of the answered, the degraded and the late."""
        return Latency.of(self.latency_ms[self._having(*SERVED)])

    @property
    def refused(self) -> Latency | None:
        """Of the refused, from when they were due."""
        return Latency.of(self.latency_ms[self._having(Outcome.REFUSED)])

    def around(self, *outcomes: Outcome) -> list[str]:
        """Of each second that has such outcomes, in words: how many, when they were due, and for
        how long others had the core."""
        told = []
        for second in self.each:
            if n := second.count(*outcomes):
                due, at = self.due_s[second._having(*outcomes)], second.seconds[0]
                told.append(
                    f"{n} due at {due.min():.3f} to {due.max():.3f} s; the host took "
                    f"{1e3 * self.taken_s[at]:.0f} ms of it; Redis waited for its core for up to "
                    f"{1e3 * self.redis_waited_s[at]:.0f} of {1e3 * EVERY_S:.0f} ms, "
                    f"{1e3 * np.median(self.redis_waited_s):.0f} in most seconds"
                )
        return told

    def count(self, *outcomes: Outcome) -> int:
        """Requests with one of these outcomes."""
        return int(self._having(*outcomes).sum())

    def _having(self, *outcomes: Outcome) -> Mask:
        looked_at = np.isin(np.floor(self.due_s).astype(np.intp), self.seconds)
        return looked_at & np.isin(self.outcomes, [outcome.value for outcome in outcomes])

    def _only(self, seconds: NDArray[np.intp]) -> Self:
        return replace(self, seconds=seconds)


def attempt(gateway: Gateway, traffic: Traffic, *stages: Stage) -> Trial:
    """One trial through the stages, of whole seconds."""
    plan = schedule(stages, "poisson", most=1_000_000)
    cpu_s, others_s = gateway.cpu_s(), gateway.others_cpu_s()
    with looking(gateway.redis_pid) as looks:
        measured = generate(gateway.url, traffic, plan, LIMITS)
    cpu_s, others_s = gateway.cpu_s() - cpu_s, gateway.others_cpu_s() - others_s
    samples = measured.samples
    run = summarize(
        samples,
        tool="open-loop",
        name="overload",
        url=gateway.url,
        seconds=plan.seconds,
        generator=measured.generator,
        goal=GOAL,
        settings={},
        stages=[(f"{stage.level:g}/s", stage.seconds) for stage in stages],
    )
    outcomes = np.empty(len(samples), "<U16")
    for outcome in Outcome:
        outcomes[samples.having([outcome])] = outcome.value
    seconds = np.arange(int(plan.seconds))
    lost = taken(looks, measured.start, plan.seconds)
    waits = waited(looks, measured.start, plan.seconds)
    cpu, others = cpu_s / plan.seconds, others_s / plan.seconds
    return Trial(
        run, samples.due_s, samples.latency_ms, outcomes, lost, waits, seconds, cpu, others
    )


def undisturbed(trial: Callable[[], Trial], most: int) -> Trial:
    """The first trial that the host left most seconds and the generator kept up with, of at most
    so many; else the one that it left the most."""
    trials: list[Trial] = []
    while len(trials) < most:
        trials.append(trial())
        mostly = 2 * len(trials[-1].ours.seconds) > len(trials[-1].seconds)
        if mostly and not trials[-1].run.generator.limited:
            return trials[-1]
    return max(trials, key=lambda trial: len(trial.ours.seconds))
