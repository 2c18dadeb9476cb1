"""Past features are what their definitions say, by counting one row at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_def.data.cross_features import DAY_MS, NEVER_DAYS, PRIOR, PastFeatures
from model_def.data.mapping import PastNumber

SOURCES = {
    "count": PastNumber(past="count", by=("user", "item_id")),
    "count_lately": PastNumber(past="count", by=("kind",), days=2.5),
    "recency": PastNumber(past="recency", by=("user", "kind")),
    "ratio": PastNumber(past="ratio", of=("paid", "pieces"), by=("item_id",)),
    "ratio_lately": PastNumber(past="ratio", of=("paid", "pieces"), by=("user",), days=3),
    "lift": PastNumber(past="lift", by=("user", "item_id", "kind")),
    "trend": PastNumber(past="trend", by=("item_id",), days=2),
}


def by_hand(source: PastNumber, rows: dict[str, np.ndarray], asking: dict[str, int]) -> float:
    """The definition in `PastNumber`, by looking at every row."""
    now = asking["time"]

    def count(names: tuple[str, ...], days: float | None = None) -> np.ndarray:
        match = rows["time"] < now
        for name in names:
            match &= rows[name] == asking[name]
        return match if days is None else match & (rows["time"] >= now - days * DAY_MS)

    by, days = source.by, source.days
    match source.past:
        case "count":
            return count(by, days).sum()
        case "recency":
            earlier = rows["time"][count(by)]
            return (now - earlier.max()) / DAY_MS if len(earlier) else NEVER_DAYS
        case "ratio":
            assert source.of
            above, below = (rows[name][count(by, days)].sum() for name in source.of)
            return above / below if below else -1
        case "lift":
            share = max(count(by[1:]).sum(), 0.5) / max(count(()).sum(), 1)
            return (count(by).sum() + PRIOR * share) / (count(by[:1]).sum() + PRIOR) / share
        case "trend":
            assert days
            elapsed = max((now - rows["time"].min()) / DAY_MS, days)
            return (count(by, days).sum() + 1) / (count(by).sum() * days / elapsed + 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_definitions(seed: int, size: int) -> None:
    """Each kind equals its definition, for keys that were seen and keys that were not."""
    rng = np.random.default_rng(seed)
    # Few distinct times, so that many rows and questions share one.
    rows = {"time": np.sort(rng.integers(0, 12, size)) * (DAY_MS // 2)}
    rows |= {name: rng.integers(0, 4, size) * 7 for name in ("user", "item_id", "kind")}
    rows |= {"paid": rng.random(size), "pieces": rng.integers(0, 3, size).astype(float)}
    keys = {name: rng.integers(0, 5, 40) * 7 for name in ("user", "item_id", "kind")}
    times = rng.integers(-1, 14, 40) * (DAY_MS // 2)
    past = PastFeatures(
        rows["time"],
        {name: rows[name] for name in keys},
        {"paid": rows["paid"], "pieces": rows["pieces"]},
    )
    answers = past.evaluate(SOURCES, keys, times)
    for name, source in SOURCES.items():
        asking = [{"time": t, **{k: v[i] for k, v in keys.items()}} for i, t in enumerate(times)]
        expected = [by_hand(source, rows, one) for one in asking]
        np.testing.assert_allclose(answers[name], expected, rtol=1e-6, err_msg=name)


def test_room() -> None:
    """More combinations than a 64-bit key can tell apart are refused, not confused."""
    many = np.arange(1 << 16)
    keys = dict.fromkeys("abcd", many)
    source = PastNumber(past="count", by=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="too many combinations"):
        PastFeatures(many, keys, {}).evaluate({"x": source}, keys, many)
