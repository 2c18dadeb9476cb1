"""When requests are due: decided before the first is sent, whatever the server does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Arrivals = Literal["poisson", "fixed", "sessions"]
ARRIVALS: tuple[Arrivals, ...] = ("poisson", "fixed", "sessions")

THINK_S = 0.4
"""Mean pause between two requests of a session, in seconds."""


@dataclass(frozen=True)
class Stage:
    """`seconds` at one level: requests a second, or for Locust users."""

    seconds: float
    level: float


def parse_stages(text: str) -> list[Stage]:
    """`10:200,60:900` is 10 s at 200, then 60 s at 900; raises ValueError."""
    stages = []
    for part in text.split(","):
        seconds, separator, level = part.strip().partition(":")
        try:
            stage = Stage(float(seconds), float(level))
        except ValueError:
            separator = ""
        if not separator or not (0 < stage.seconds < 86400 and 0 < stage.level < 1e6):
            raise ValueError(f"{part!r}: expected SECONDS:LEVEL, both above 0, as 10:200,60:900")
        stages.append(stage)
    return stages


@dataclass(frozen=True)
class Schedule:
    """N requests in the order in which they are due."""

    due_s: NDArray[np.float64]
    """[N] seconds since the start, ascending."""
    session: NDArray[np.int64]
    """[N] whose request it is."""
    turn: NDArray[np.int64]
    """[N] its number within the session."""
    stages: tuple[Stage, ...]

    @property
    def seconds(self) -> float:
        """Length of the schedule."""
        return sum(stage.seconds for stage in self.stages)


class TooMany(ValueError):
    """More requests than a run may send."""


def schedule(
    stages: Sequence[Stage],
    arrivals: Arrivals,
    *,
    most: int,
    mean_session: float = 1.0,
    seed: int = 0,
) -> Schedule:
    """Arrivals at the rates of `stages`; raises TooMany beyond `most` requests.

    `poisson`: independent callers. `fixed`: evenly spaced, a test's metronome. `sessions`:
    Poisson sessions of `mean_session` requests each (geometric), THINK_S apart: burstier.
    """
    expected = sum(stage.seconds * stage.level for stage in stages)
    if expected > most:
        raise TooMany(f"{expected:.0f} requests are due, at most {most} are allowed")
    rng = np.random.default_rng(seed)
    start, parts = 0.0, []
    for stage in stages:
        mean = mean_session if arrivals == "sessions" else 1.0
        parts.append(start + _begin(stage, stage.level / mean, arrivals, rng))
        start += stage.seconds
    begin = np.concatenate(parts)
    length = np.ones(len(begin), np.int64)
    if arrivals == "sessions":
        length = rng.geometric(1 / mean_session, len(begin))
    session = np.repeat(np.arange(len(begin)), length)
    first = np.repeat(np.cumsum(length) - length, length)
    turn = np.arange(len(session)) - first
    pauses = np.where(turn > 0, rng.exponential(THINK_S, len(session)), 0.0)
    elapsed = np.cumsum(pauses)
    due = np.repeat(begin, length) + elapsed - elapsed[first]
    order = np.argsort(due, kind="stable")
    order = order[due[order] < start]
    return Schedule(due[order], session[order], turn[order], tuple(stages))


def _begin(
    stage: Stage, rate: float, arrivals: Arrivals, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Starts within a stage, in seconds, ascending."""
    if arrivals == "fixed":
        return np.arange(int(stage.seconds * rate)) / rate
    return np.sort(rng.uniform(0, stage.seconds, rng.poisson(stage.seconds * rate)))
