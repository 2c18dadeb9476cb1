"""The highest rate that meets a goal: double until it is missed, then bisect.

One trial of a few seconds is noisy, so each rate gets as many trials as it takes for one verdict
to come up `repeats` times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from loadtest.run import Run


@dataclass(frozen=True)
class Bounds:
    """Where to look, how closely, and for how long."""

    low: float
    """Rate of the first trial, requests a second."""
    high: float
    """Rate that is not exceeded."""
    resolution: float = 0.05
    """Stop when the lowest rate that missed is within this share of the highest that met."""
    repeats: int = 2
    most_trials: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"expected 0 < low <= high, got {self.low:g} and {self.high:g}")
        if self.resolution <= 0 or self.repeats < 1 or self.most_trials < 1:
            raise ValueError("resolution, repeats and most_trials: expected more than 0")


@dataclass(frozen=True)
class Found:
    """The end of a search."""

    rate: float | None
    """Highest rate that met the goal; None if none did."""
    missed_at: float | None
    """Lowest rate that missed it; None if none did."""
    stopped: str | None
    """Why the search ended early; None when it came to its resolution, or to `high`."""
    trials: list[tuple[float, Run]]
    """Every trial with the rate that was asked of it, in order."""

    @property
    def best(self) -> Run:
        """The last trial at the rate found that met the goal, or else the last of all."""
        meeting = [run for rate, run in self.trials if rate == self.rate and not run.missed]
        return (meeting or [self.trials[-1][1]])[-1]


class _Stop(Exception):
    """Why to search no further."""


def search(measure: Callable[[float], Run], bounds: Bounds) -> Found:
    """`measure(rate)` runs one trial. The answer holds for the bounds' repeats, no more."""
    trials: list[tuple[float, Run]] = []
    met: float | None = None
    missed: float | None = None

    def meets(rate: float) -> bool:
        verdicts: list[bool] = []
        while max(verdicts.count(True), verdicts.count(False)) < bounds.repeats:
            if len(trials) >= bounds.most_trials:
                raise _Stop(f"{bounds.most_trials} trials were made, the most allowed")
            run = measure(rate)
            trials.append((rate, run))
            if run.generator.limited:
                raise _Stop(run.generator.limited)
            verdicts.append(not run.missed)
        return verdicts.count(True) >= bounds.repeats

    try:
        rate = bounds.low
        while True:
            if meets(rate):
                met = rate
            else:
                missed = rate
            if met is None:
                break
            if missed is None and met >= bounds.high:
                break
            if missed is not None and missed / met - 1 <= bounds.resolution:
                break
            rate = min(2 * met, bounds.high) if missed is None else sqrt(met * missed)
    except _Stop as stop:
        return Found(met, missed, str(stop), trials)
    return Found(met, missed, None, trials)
