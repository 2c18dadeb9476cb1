"""Metrics equal their definitions, written out by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_def.metrics import (
    auc,
    calibration,
    calibration_bins,
    gauc,
    log_loss,
    normalized_entropy,
)

rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(1, 9).map(lambda n: n / 10), st.integers(0, 3)),
    max_size=40,
)


def brute_auc(labels: list[int], scores: list[float]) -> float:
    """Pairs won, ties half, over all pairs of a positive and a negative."""
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, is_positive in zip(scores, labels, strict=True)
        for n, other in zip(scores, labels, strict=True)
        if is_positive and not other
    ]
    return sum(wins) / len(wins) if wins else math.nan


@given(rows=rows)
def test_auc_and_gauc(rows: list[tuple[int, float, int]]) -> None:
    """AUC counts pairs, ties half; GAUC is the plain mean over groups of both classes."""
    labels = np.array([r[0] for r in rows])
    scores = np.array([r[1] for r in rows])
    groups = np.array([r[2] for r in rows])
    expected = brute_auc(labels.tolist(), scores.tolist())
    assert auc(labels, scores) == pytest.approx(expected, nan_ok=True)
    by_group = [
        brute_auc(labels[groups == g].tolist(), scores[groups == g].tolist())
        for g in sorted(set(groups.tolist()))
    ]
    defined = [a for a in by_group if not math.isnan(a)]
    result = gauc(labels, scores, groups)
    assert result.groups == len(defined)
    assert result.one_class_groups == len(by_group) - len(defined)
    mean = sum(defined) / len(defined) if defined else math.nan
    assert result.value == pytest.approx(mean, nan_ok=True)


@given(rows=rows)
def test_loss_entropy_and_calibration(rows: list[tuple[int, float, int]]) -> None:
    """Log loss, NE and calibration follow their definitions; undefined ones are NaN."""
    labels = np.array([r[0] for r in rows])
    p = np.array([r[1] for r in rows])
    if not rows:
        assert math.isnan(log_loss(labels, p))
        return
    loss = -sum(math.log(x if y else 1 - x) for y, x, _ in rows) / len(rows)
    assert log_loss(labels, p) == pytest.approx(loss)
    rate = labels.mean()
    if 0 < rate < 1:
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        assert normalized_entropy(labels, p) == pytest.approx(loss / entropy)
    else:
        assert math.isnan(normalized_entropy(labels, p))
    if rate > 0:
        assert calibration(labels, p) == pytest.approx(p.sum() / labels.sum())
    else:
        assert math.isnan(calibration(labels, p))


@given(rows=rows, bins=st.integers(1, 12))
def test_calibration_bins(rows: list[tuple[int, float, int]], bins: int) -> None:
    """Bins hold every row, ascend in prediction, differ by one row at most, keep all totals."""
    labels = np.array([r[0] for r in rows])
    p = np.array([r[1] for r in rows])
    found = calibration_bins(labels, p, bins)
    assert sum(b.rows for b in found) == len(rows)
    sizes = [b.rows for b in found]
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert [b.predicted for b in found] == sorted(b.predicted for b in found)
    assert sum(b.rows * b.predicted for b in found) == pytest.approx(p.sum())
    assert sum(b.rows * b.actual for b in found) == pytest.approx(labels.sum())


def test_float32_ties_are_ties() -> None:
    """Scores equal in their own precision tie; a constant score has AUC one half."""
    labels = np.array([0, 1, 0, 1])
    assert auc(labels, np.full(4, 0.1, np.float32)) == 0.5
