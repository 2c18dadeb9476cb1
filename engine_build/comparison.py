"""Two packages on the same labelled requests: how they rank, how calibrated, how fast.

Also what the serving package served, scored again: what was logged must give the scores that were
served, or something between serving and training is broken and no comparison means anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from engine_build.runtime.engine import Engine, EngineError
from engine_build.runtime.manifest import EngineKind
from engine_build.runtime.package import ModelPackage
from model_def.data.logs import UNLABELLED, Logs
from model_def.data.samples import TrainingSample, task_labels, training_samples
from model_def.data.served_scores import ServedScores
from model_def.metrics import calibration, gauc, normalized_entropy

DAY_MS = 86_400_000
PSI_BINS = 10
PSI_FLOOR = 1e-4
"""Least share of a bin: an empty one must not make the index infinite."""

Floats = NDArray[np.floating]


class PromotionError(EngineError):
    """Packages or logs that cannot be compared at all."""


@dataclass(frozen=True)
class Quality:
    """One task of one package over its labelled exposures; NaN where one class is missing."""

    exposures: int
    positives: int
    gauc_user: float
    gauc_request: float
    normalized_entropy: float
    calibration: float


@dataclass(frozen=True)
class Shift:
    """Scores of one scene, the candidate's against the serving package's."""

    psi: float
    mean_serving: float
    mean_candidate: float


@dataclass(frozen=True)
class Replay:
    """One task of what the serving package served, beside the same scored again."""

    exposures: int
    gauc_served: float
    gauc_again: float
    largest_difference: float
    """Of a probability."""


@dataclass(frozen=True)
class Comparison:
    """All that was measured; the two packages by task, by scene, or by name."""

    since_ms: int
    requests: int
    candidate: dict[str, Quality]
    serving: dict[str, Quality]
    shift: dict[str, Shift]
    latency_ms: dict[str, dict[str, float]]
    """p50 and p99 of `candidate` and `serving`, a request at a time."""
    replay: dict[str, Replay]


def newest_labelled_day(logs: Logs) -> int:
    """Start, in ms, of the last day (UTC) that has labels. Raises PromotionError."""
    requests = logs.requests
    owner = np.repeat(np.arange(len(requests.request_id)), requests.candidate_counts)
    labelled = np.unique(owner[requests.click != UNLABELLED])
    if not len(labelled):
        raise PromotionError("the logs hold no labelled exposure")
    return int(requests.context["time_ms"][labelled].max()) // DAY_MS * DAY_MS


def compare(
    candidate: ModelPackage,
    serving: ModelPackage,
    kind: EngineKind,
    logs: Logs,
    served: ServedScores | None,
    threads: int = 1,
) -> Comparison:
    """Compare on `logs`, the requests of one day; `served` is what was served of them.

    Raises EngineError for a package that cannot be loaded or takes other requests.
    """
    if candidate.config.features.taken != serving.config.features.taken:
        raise PromotionError(
            f"{candidate.path}: takes other requests than {serving.path}; serve it under an alias "
            "and a scene of its own"
        )
    tasks = serving.config.model.tasks
    if candidate.config.model.tasks != tasks:
        raise PromotionError(
            f"{candidate.path}: predicts {candidate.config.model.tasks}, not {tasks}"
        )
    engines = [package.load_engine(kind, threads) for package in (serving, candidate)]
    samples = list(training_samples(logs, as_served=True))
    (old, new), seconds = score(engines, samples, len(logs.requests.click), tasks)
    labels = task_labels(logs.requests, tasks)
    owner = np.repeat(np.arange(len(samples)), logs.requests.candidate_counts)
    scenes = logs.requests.scene[owner]
    old_score = serving.config.model.score({t: old[:, i] for i, t in enumerate(tasks)})
    new_score = candidate.config.model.score({t: new[:, i] for i, t in enumerate(tasks)})
    return Comparison(
        since_ms=int(logs.requests.context["time_ms"].min()),
        requests=len(samples),
        candidate=quality(logs, tasks, labels, new),
        serving=quality(logs, tasks, labels, old),
        shift={
            scene: shift(old_score[scenes == scene], new_score[scenes == scene])
            for scene in np.unique(scenes).tolist()
        },
        latency_ms={
            name: dict(
                zip(("p50", "p99"), np.quantile(1e3 * taken, (0.5, 0.99)).tolist(), strict=True)
            )
            for name, taken in zip(("serving", "candidate"), seconds.T, strict=True)
        },
        replay=replay(logs, tasks, labels, old, served, serving.config.version),
    )


def score(
    engines: Sequence[Engine],
    samples: Sequence[TrainingSample],
    exposures: int,
    tasks: Sequence[str],
) -> tuple[list[NDArray[np.float32]], Floats]:
    """Probabilities [exposures, tasks] of each engine, and its seconds [samples, engines].

    The engines take turns at each request, so that a busy machine slows both.
    """
    out = [np.full((exposures, len(tasks)), np.nan, np.float32) for _ in engines]
    seconds = np.zeros((len(samples), len(engines)))
    for i, sample in enumerate(samples):
        for j, engine in enumerate(engines):
            start = perf_counter()
            scores = engine.run(sample.batch)
            seconds[i, j] = perf_counter() - start
            out[j][sample.rows] = np.stack([scores.tasks[task] for task in tasks], 1)
    return out, seconds


def quality(
    logs: Logs, tasks: Sequence[str], labels: NDArray[np.float32], probabilities: Floats
) -> dict[str, Quality]:
    """Of each task."""
    out = {}
    for position, task in enumerate(tasks):
        known = ~np.isnan(labels[:, position])
        label, p = labels[known, position], probabilities[known, position]
        user, request = (groups[known] for groups in _groups(logs))
        out[task] = Quality(
            len(label),
            int(label.sum()),
            gauc(label, p, user).value,
            gauc(label, p, request).value,
            normalized_entropy(label, p),
            calibration(label, p),
        )
    return out


def _groups(logs: Logs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """User and request of each exposure, as codes."""
    requests = logs.requests
    owner = np.repeat(np.arange(len(requests.request_id)), requests.candidate_counts)
    return np.unique(requests.user_id, return_inverse=True)[1][owner], owner


def shift(serving: Floats, candidate: Floats) -> Shift:
    """Population stability index over tenths of the serving scores, and both means."""
    edges = np.unique(np.quantile(serving, np.linspace(0, 1, PSI_BINS + 1)[1:-1]))
    shares = []
    for scores in (serving, candidate):
        counts = np.bincount(np.searchsorted(edges, scores, side="right"), minlength=len(edges) + 1)
        shares.append(np.maximum(counts / len(scores), PSI_FLOOR))
    psi = float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
    return Shift(psi, float(serving.mean()), float(candidate.mean()))


def replay(
    logs: Logs,
    tasks: Sequence[str],
    labels: NDArray[np.float32],
    again: Floats,
    served: ServedScores | None,
    version: str,
) -> dict[str, Replay]:
    """Of each task that this version served: its scores then, and now; empty if it served none."""
    out: dict[str, Replay] = {}
    if served is None:
        return out
    for position, task in enumerate(tasks):
        then = served.tasks[task]
        rows = (served.model_version == version) & ~np.isnan(then)
        if not rows.any():
            continue
        known = rows & ~np.isnan(labels[:, position])
        user, label = _groups(logs)[0][known], labels[known, position]
        out[task] = Replay(
            int(rows.sum()),
            gauc(label, then[known], user).value,
            gauc(label, again[known, position], user).value,
            float(np.abs(then[rows] - again[rows, position]).max()),
        )
    return out
