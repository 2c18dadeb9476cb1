"""Ranking and calibration metrics, in NumPy.

Each takes labels [N] of 0 and 1 and scores or probabilities [N]; a metric that is undefined (one
class only, no rows) is NaN, never a made-up number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[Any]


@dataclass(frozen=True)
class GroupedAuc:
    """GAUC, and how many groups it is the mean of; groups of one class have no AUC."""

    value: float
    groups: int
    one_class_groups: int


@dataclass(frozen=True)
class CalibrationBin:
    """Rows whose predictions are neighbours: their mean prediction and their rate of positives."""

    rows: int
    predicted: float
    actual: float


def auc(labels: Vector, scores: Vector) -> float:
    """Probability that a positive scores above a negative, ties counting half."""
    return gauc(labels, scores, np.zeros(len(labels), np.int64)).value


def gauc(labels: Vector, scores: Vector, group: Vector) -> GroupedAuc:
    """Unweighted mean of the AUCs of each group's rows (paper section 6.1); `group` is any key."""
    if not len(labels):
        return GroupedAuc(float("nan"), 0, 0)
    codes = np.unique(group, return_inverse=True)[1]
    positives = np.bincount(codes, labels)
    negatives = np.bincount(codes) - positives
    rank_sum = np.bincount(codes, labels * _ranks(scores, codes))
    both = (positives > 0) & (negatives > 0)
    wins = rank_sum[both] - positives[both] * (positives[both] + 1) / 2
    aucs = wins / (positives[both] * negatives[both])
    mean = float(aucs.mean()) if len(aucs) else float("nan")
    return GroupedAuc(mean, len(aucs), len(both) - len(aucs))


def log_loss(labels: Vector, probabilities: Vector) -> float:
    """Mean binary cross-entropy, in nats; probabilities are kept 1e-12 away from 0 and 1."""
    if not len(labels):
        return float("nan")
    p = np.clip(np.asarray(probabilities, np.float64), 1e-12, 1 - 1e-12)
    return float(-np.mean(np.where(labels == 1, np.log(p), np.log1p(-p))))


def normalized_entropy(labels: Vector, probabilities: Vector) -> float:
    """Log loss over that of predicting the mean rate; below 1 is better than the mean.

    Source: He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", eq. 1.
    """
    if not len(labels) or labels.min() == labels.max():
        return float("nan")
    base = log_loss(labels, np.full(len(labels), labels.mean()))
    return log_loss(labels, probabilities) / base


def calibration(labels: Vector, probabilities: Vector) -> float:
    """Predicted over actual positives: 1 is calibrated, above 1 over-predicts."""
    return float(np.sum(probabilities, dtype=np.float64) / labels.sum()) if labels.any() else np.nan


def calibration_bins(labels: Vector, probabilities: Vector, bins: int = 10) -> list[CalibrationBin]:
    """Equally many rows a bin, by ascending prediction; empty bins are left out."""
    order = np.argsort(probabilities, kind="stable")
    return [
        CalibrationBin(len(rows), float(probabilities[rows].mean()), float(labels[rows].mean()))
        for rows in np.array_split(order, bins)
        if len(rows)
    ]


def _ranks(scores: Vector, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rank of each row in its group from 1, equal scores sharing the mean of theirs."""
    order = np.lexsort((scores, codes))
    ordered, group = scores[order], codes[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]) | (group[1:] != group[:-1])
    run = np.cumsum(fresh) - 1
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(order))
    group_first = np.searchsorted(group, group)
    ranks = np.empty(len(order))
    ranks[order] = (first[run] + 1 + last[run]) / 2 - group_first
    return ranks
