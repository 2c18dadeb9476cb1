"""The document that every load test writes: `mtgr-load/1`, in JSON. Reports read nothing else."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import numpy as np

from loadtest.goal import Goal
from loadtest.outcome import SERVED, Outcome
from loadtest.samples import Floats, Mask, Samples

WINDOW_S = 1.0


class Latency(msgspec.Struct):
    """Milliseconds; each percentile is a latency that was seen (nearest rank)."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, values: Floats) -> Self | None:
        """Of [N] latencies; None of none."""
        if not len(values):
            return None
        ranks = np.percentile(values, [50, 90, 99, 99.9], method="inverted_cdf").tolist()
        numbers = [float(values.mean()), *ranks, float(values.max())]
        return cls(len(values), *(round(number, 3) for number in numbers))


class Window(msgspec.Struct):
    """The requests that were due in one second of the run."""

    start_s: float
    outcomes: dict[str, int]
    latency: Latency | None
    """Of the served: answered, degraded or late."""
    refused: dict[str, int] = {}
    """Refusals by reason."""


class Step(msgspec.Struct):
    """A span at one load: a stage of the run, or one trial of a search."""

    rate_per_s: float
    """Requests sent a second; for Locust, what its users came to."""
    seconds: float
    outcomes: dict[str, int]
    latency: Latency | None
    missed: list[str]
    """What of the goal was missed, in words; empty where it was met."""
    label: str = ""


class Mark(msgspec.Struct):
    """Something that was done to the service."""

    at_s: float
    text: str


class Generator(msgspec.Struct):
    """Whether the generator itself kept up."""

    loop: Literal["open", "closed"]
    lag_p99_ms: float | None
    """How late requests were sent by its own fault; None where there is no schedule."""
    lag_max_ms: float | None
    cpu_share: float
    """CPU seconds of the generator for each second of the run."""
    limited: str | None
    """Why its numbers are not the server's; None where they are."""
    lag_p50_ms: float | None = None


class Run(msgspec.Struct, forbid_unknown_fields=True):
    """One load test."""

    tool: Literal["open-loop", "search", "locust"]
    name: str
    url: str
    started: str
    seconds: float
    sent: int
    outcomes: dict[str, int]
    reasons: dict[str, dict[str, int]]
    latency: Latency | None
    refusals: Latency | None
    kinds: dict[str, Latency]
    stages: dict[str, Latency]
    distribution: list[tuple[float, float]]
    """(percentile, milliseconds) of the served."""
    windows: list[Window]
    steps: list[Step]
    generator: Generator
    goal: Goal
    missed: list[str]
    settings: dict[str, Any]
    machine: dict[str, Any]
    marks: list[Mark] = []
    watched: dict[str, list[tuple[float, float]]] = {}
    """What was seen of the server over time, by name with its unit: (seconds, value)."""
    since_sent: Latency | None = None
    """Of the served, from when each was sent: the latency without the generator's lag."""
    format: Literal["mtgr-load/1"] = "mtgr-load/1"

    @property
    def rate_per_s(self) -> float:
        """Requests sent a second."""
        return self.sent / self.seconds

    @property
    def goodput_per_s(self) -> float:
        """Answers of the model within the deadline, a second."""
        return self.outcomes[Outcome.ANSWERED] / self.seconds


class BadRun(Exception):
    """A file that holds no run."""


def summarize(
    samples: Samples,
    *,
    tool: Literal["open-loop", "search", "locust"],
    name: str,
    url: str,
    seconds: float,
    generator: Generator,
    goal: Goal,
    settings: dict[str, Any],
    stages: list[tuple[str, float]] | None = None,
) -> Run:
    """The document of a run of `seconds`, whose `stages` are (label, seconds) in order."""
    served, refused = samples.having(SERVED), samples.having([Outcome.REFUSED])
    latency, due, kinds = samples.latency_ms, samples.due_s, samples.kinds
    outcomes = samples.outcomes()
    of_served = Latency.of(latency[served])
    missed = goal.missed(outcomes, None if of_served is None else of_served.p99)
    return Run(
        tool=tool,
        name=name,
        url=url,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        sent=len(samples),
        outcomes=outcomes,
        reasons=samples.reasons(),
        latency=of_served,
        refusals=Latency.of(latency[refused]),
        kinds=_by_kind(latency, kinds, served),
        stages={
            stage: summary
            for stage, taken in samples.stages.items()
            if (summary := Latency.of(taken)) is not None
        },
        distribution=_distribution(latency[served]),
        windows=[
            Window(
                at,
                samples.outcomes(mask),
                Latency.of(latency[mask & served]),
                samples.reasons(mask & refused).get(Outcome.REFUSED, {}),
            )
            for at, mask in _spans(due, [WINDOW_S] * int(np.ceil(seconds / WINDOW_S)))
        ],
        steps=_steps(samples, goal, stages or [("", seconds)]),
        generator=generator,
        goal=goal,
        missed=missed + ([generator.limited] if generator.limited else []),
        settings=settings,
        machine={
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
        },
        since_sent=Latency.of((latency - samples.lag_ms)[served]),
    )


def _by_kind(latency: Floats, kinds: Any, served: Mask) -> dict[str, Latency]:
    found: dict[str, Latency] = {}
    for kind in np.unique(kinds[served]).tolist():
        summary = Latency.of(latency[served & (kinds == kind)])
        assert summary is not None  # the kind was found among the served
        found[kind] = summary
    return found


def _steps(samples: Samples, goal: Goal, stages: list[tuple[str, float]]) -> list[Step]:
    served, latency = samples.having(SERVED), samples.latency_ms
    steps = []
    for (label, span), (_, mask) in zip(
        stages, _spans(samples.due_s, [s for _, s in stages]), strict=True
    ):
        outcomes, of_served = samples.outcomes(mask), Latency.of(latency[mask & served])
        missed = goal.missed(outcomes, None if of_served is None else of_served.p99)
        rate = round(float(mask.sum()) / span, 2)
        steps.append(Step(rate, round(span, 3), outcomes, of_served, missed, label))
    return steps


def _spans(due: Floats, lengths: list[float]) -> list[tuple[float, Mask]]:
    """(start, requests due in it) of spans that follow each other; the last takes the rest."""
    ends = np.cumsum(lengths, dtype=np.float64)
    starts = np.concatenate([[0.0], ends[:-1]])
    ends[-1:] = np.inf
    return [
        (float(start), (due >= start) & (due < end))
        for start, end in zip(starts, ends, strict=True)
    ]


def _distribution(served: Floats) -> list[tuple[float, float]]:
    """Percentiles up to the last that N latencies can tell, closer together near the end."""
    if not len(served):
        return []
    nines = np.arange(0, np.log10(max(len(served), 2)) + 1e-9, 0.05)
    percents = 100 * (1 - 10.0**-nines)
    values = np.percentile(served, percents, method="inverted_cdf")
    points = zip(percents.round(4).tolist(), values.round(3).tolist(), strict=True)
    return [*points, (100.0, round(float(served.max()), 3))]


def write_run(run: Run, path: Path) -> None:
    """Write the document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1))


def read_run(path: Path) -> Run:
    """Read a document; raises BadRun."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadRun(f"{path}: {error}") from None
