"""Scores logged exposures with a model and reports how well it ranks and how well it is calibrated.

Knows nothing of training; the probabilities may come from any ranker.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model_def.data.logs import Requests
from model_def.data.samples import TrainingSample, joined, token_batches
from model_def.metrics import (
    CalibrationBin,
    GroupedAuc,
    auc,
    calibration,
    calibration_bins,
    gauc,
    normalized_entropy,
)
from model_def.model import MTGR, to_tensors


@dataclass(frozen=True)
class TaskReport:
    """One task's metrics over its labelled exposures."""

    task: str
    exposures: int
    positives: int
    auc: float
    gauc_user: GroupedAuc
    gauc_request: GroupedAuc
    normalized_entropy: float
    calibration: float
    bins: list[CalibrationBin]


@dataclass(frozen=True)
class Slice:
    """Ranking and calibration of one task over a part of the exposures."""

    task: str
    kind: str
    """By what it was cut: "scene", or "history" (lifelong and real-time tokens)."""
    part: str
    exposures: int
    positives: int
    auc: float
    gauc_request: GroupedAuc
    calibration: float


@dataclass(frozen=True)
class Evaluation:
    """All that `mtgr evaluate` says of a checkpoint."""

    version: str
    since: str
    held_out: list[TaskReport]
    best_reachable: list[TaskReport]
    slices: list[Slice]


HISTORY_EDGES = (0, 1, 10, 30, 100, 300, 1000)
"""Tokens at which a class of histories begins; the last is open."""


def predict(
    model: MTGR, samples: Sequence[TrainingSample], batch_tokens: int = 16384
) -> NDArray[np.float32]:
    """Probabilities [N, tasks] of the exposures of `samples`, which hold rows 0..N-1 once each."""
    tokens = np.array([sample.tokens for sample in samples], np.int64)
    total = sum(len(sample.rows) for sample in samples)
    out = np.full((total, len(model.config.tasks)), np.nan, np.float32)
    with torch.inference_mode():
        for batch in token_batches(tokens, batch_tokens, np.random.default_rng(0)):
            sample = joined([samples[i] for i in batch], model.schema)
            out[sample.rows] = model.whole(to_tensors(sample.batch)).sigmoid().numpy()
    return out


def report(
    tasks: Sequence[str],
    requests: Requests,
    labels: NDArray[np.float32],
    probabilities: NDArray[np.floating],
) -> list[TaskReport]:
    """One report a task; labels and probabilities are [N, tasks], in the requests' row order."""
    owner = np.repeat(np.arange(len(requests.user_id)), requests.candidate_counts)
    user = np.unique(requests.user_id, return_inverse=True)[1][owner]
    reports = []
    for position, task in enumerate(tasks):
        known = ~np.isnan(labels[:, position])
        label, p = labels[known, position], probabilities[known, position]
        reports.append(
            TaskReport(
                task,
                len(label),
                int(label.sum()),
                auc(label, p),
                gauc(label, p, user[known]),
                gauc(label, p, owner[known]),
                normalized_entropy(label, p),
                calibration(label, p),
                calibration_bins(label, p),
            )
        )
    return reports


def slices(
    tasks: Sequence[str],
    requests: Requests,
    samples: Sequence[TrainingSample],
    labels: NDArray[np.float32],
    probabilities: NDArray[np.floating],
) -> list[Slice]:
    """Each task by scene and by history length, parts without exposures left out."""
    owner = np.repeat(np.arange(len(requests.user_id)), requests.candidate_counts)
    scene = requests.scene[owner]
    parts = [("scene", str(name), scene == name) for name in np.unique(scene)]
    length = history_lengths(samples)
    starts = HISTORY_EDGES
    for low, high in zip(starts, (*starts[1:], None), strict=True):
        inside = (length >= low) & (length < high) if high else length >= low
        name = str(low) if high == low + 1 else f"{low}-{high - 1}" if high else f"{low}+"
        parts.append(("history", name, inside))
    found = []
    for position, task in enumerate(tasks):
        for kind, name, inside in parts:
            rows = inside & ~np.isnan(labels[:, position])
            if not rows.any():
                continue
            label, p = labels[rows, position], probabilities[rows, position]
            grouped = gauc(label, p, owner[rows])
            ratio = calibration(label, p)
            counts = len(label), int(label.sum())
            found.append(Slice(task, kind, name, *counts, auc(label, p), grouped, ratio))
    return found


def history_lengths(samples: Sequence[TrainingSample]) -> NDArray[np.int64]:
    """[N]: lifelong and real-time tokens that each exposure sees."""
    out = np.zeros(sum(len(sample.rows) for sample in samples), np.int64)
    for sample in samples:
        arrays = sample.batch.arrays
        out[sample.rows] = arrays["lifelong_offsets"][-1] + arrays["candidate_visible"].astype(int)
    return out


def as_text(reports: Sequence[TaskReport]) -> str:
    """The reports as a table, and each task's calibration by bin."""
    lines = [
        f"{'task':6} {'exposures':>9} {'positives':>9} {'AUC':>7} {'GAUC/user':>9} "
        f"{'GAUC/request':>12} {'NE':>7} {'predicted/actual':>16}"
    ]
    for r in reports:
        lines.append(
            f"{r.task:6} {r.exposures:9d} {r.positives:9d} {r.auc:7.4f} {r.gauc_user.value:9.4f} "
            f"{r.gauc_request.value:12.4f} {r.normalized_entropy:7.4f} {r.calibration:16.3f}"
        )
    for r in reports:
        by_user, by_request = r.gauc_user, r.gauc_request
        lines.append(
            f"{r.task}: GAUC over {by_user.groups} users ({by_user.one_class_groups} of one class "
            f"left out) and {by_request.groups} requests ({by_request.one_class_groups} left out)"
        )
        pairs = (f"{b.predicted:.3f}/{b.actual:.3f}" for b in r.bins)
        lines.append(f"{r.task}: predicted/actual by tenth: {'  '.join(pairs)}")
    return "\n".join(lines)
