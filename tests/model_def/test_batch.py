"""Packing: what a request may see, byte for byte, and how little of it crosses to the engine."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model_def.batch import (
    merge,
    pack,
    pack_events,
    pack_static,
    realtime_window,
    split_window,
    visible_lengths,
)
from model_def.config import PRESETS, PackageConfig
from model_def.rows import InvalidFeature, checked_column, empty_rows, rows_from_columns
from model_def.schema import CategoryFeature, FeatureSchema, IdFeature, NumberFeature
from tests.model_def.cases import SCHEMA, SNAPSHOT_MS, batch, behaviours, sample

times = st.lists(st.integers(0, 12), max_size=12)


def test_golden_visible_lengths(golden_dir: Path) -> None:
    """How many leading events each row sees, ties included, as the independent vectors say."""
    cases = json.loads((golden_dir / "visible.json").read_text())
    assert cases
    for case in cases:
        events = np.array(case["rt_time"], np.int64)
        requests = np.array(case["candidate_time"], np.int64)
        assert visible_lengths(events, events).tolist() == case["rt_visible"]
        assert visible_lengths(events, requests).tolist() == case["candidate_visible"]


@given(times, st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
def test_window_keeps_the_last_events_strictly_between(
    event_ms: list[int], snapshot: int, end: int, cap: int
) -> None:
    """Kept are the last `cap` events with snapshot < t < request, sorted by (t, event id)."""
    rng = np.random.default_rng(0)
    events = behaviours(rng, "realtime", event_ms)
    kept = realtime_window(events, snapshot, end, cap)
    stamps = zip(events["time_ms"].tolist(), events["event_id"].tolist(), strict=True)
    expected = sorted(stamp for stamp in stamps if snapshot < stamp[0] < end)
    expected = expected[len(expected) - min(cap, len(expected)) :]
    assert list(zip(kept["time_ms"].tolist(), kept["event_id"].tolist(), strict=True)) == expected


@given(times, st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 4))
def test_split_window_shares_only_what_serving_would_see(
    event_ms: list[int], request_ms: list[int], cap: int
) -> None:
    """Requests of one sample see in it exactly the events that each would see alone."""
    events, requests = np.sort(np.array(event_ms, np.int64)), np.sort(np.array(request_ms))
    parts = split_window(events, requests, cap)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(requests)))
    for part in parts:
        last = requests[part.stop - 1]
        kept = events[events < last][-cap:] if cap else events[:0]
        for at in requests[part]:
            alone = events[events < at][-cap:] if cap else events[:0]
            assert kept[: visible_lengths(kept, np.array([at]))[0]].tolist() == alone.tolist()


def test_one_request_window_is_byte_equal_to_its_serving_pack() -> None:
    """A training sample of one request and the request as served are the same bytes."""
    served = sample(1, event_ms=(1000, 2000))
    logged = replace(
        served,
        realtime=np.concatenate(
            [
                served.realtime[::-1],
                behaviours(
                    np.random.default_rng(0), "realtime", [SNAPSHOT_MS - 5, SNAPSHOT_MS + 10**6]
                ),
            ]
        ),
    )
    assert pack(SCHEMA, served).buffer.tobytes() == pack(SCHEMA, logged).buffer.tobytes()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_merge_concatenates_requests(lengths: list[int]) -> None:
    """Each request's slice of a merged batch holds the values it had alone."""
    alone = [pack(SCHEMA, sample(i, lifelong=n, counts=(n,))) for i, n in enumerate(lengths)]
    merged = merge(alone, SCHEMA)
    assert merged.requests == len(alone)
    offsets = {"lifelong": "lifelong", "realtime": "rt", "candidate": "candidate"}
    for spec in SCHEMA.arrays:
        if spec.rows == "offset":
            continue
        ends = merged.arrays.get(f"{offsets.get(spec.rows)}_offsets", np.arange(len(alone) + 1))
        for i, single in enumerate(alone):
            part = merged.arrays[spec.name][ends[i] * spec.width : ends[i + 1] * spec.width]
            assert part.tobytes() == single.arrays[spec.name].tobytes(), spec.name
    assert merged.candidate_context.tolist() == np.repeat(range(len(alone)), lengths).tolist()


def test_caps_keep_the_newest() -> None:
    """Of too long a lifelong sequence the last `lifelong_cap` behaviours are packed."""
    long = sample(2, lifelong=40)
    short = replace(long, lifelong=long.lifelong[-SCHEMA.lifelong_cap :])
    assert pack(SCHEMA, long).buffer.tobytes() == pack(SCHEMA, short).buffer.tobytes()


@given(st.integers(0, 9), st.integers(0, 40), st.lists(st.integers(-5, 5000), max_size=40))
def test_what_was_packed_of_a_user_before_is_the_same(
    seed: int, lifelong: int, event_ms: list[int]
) -> None:
    """Kept from an earlier request of the user, it makes the same bytes, whatever the order in
    which events came, and though some are too early, too late or too many."""
    of_user = sample(seed, lifelong=lifelong, event_ms=tuple(event_ms))
    static = pack_static(SCHEMA, of_user.snapshot_ms, of_user.profile, of_user.lifelong)
    events = pack_events(SCHEMA, of_user.snapshot_ms, of_user.realtime)
    kept = pack(SCHEMA, replace(of_user, context=sample(seed + 1).context), static, events)
    fresh = pack(SCHEMA, replace(of_user, context=sample(seed + 1).context))
    assert kept.buffer.tobytes() == fresh.buffer.tobytes()


def test_user_and_context_cross_once_whatever_the_candidates() -> None:
    """A hundred more candidates add their own bytes only."""
    few, many = batch(sample(3, counts=(10,))), batch(sample(3, counts=(110,)))
    own = SCHEMA.layouts["candidate"].record.itemsize + 1  # and its visible length
    assert abs(many.payload_bytes - few.payload_bytes - 100 * own) < 16 * len(SCHEMA.arrays)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.integers(0, 4096))
def test_any_schema_has_at_most_16_arrays(
    ids: int, categories: int, numbers: int, large: bool, cap: int
) -> None:
    """Whatever its features, a schema's batch is at most 16 value arrays and three offsets."""
    features = (
        *(IdFeature(name=f"id{i}") for i in range(ids)),
        *(CategoryFeature(name=f"c{i}", size=1000 if large else 9) for i in range(categories)),
        *(NumberFeature(name=f"n{i}") for i in range(numbers)),
    )
    some = features or (NumberFeature(name="n"),)
    schema = FeatureSchema(
        name="any",
        profile=some,
        behaviour=some,
        item=(IdFeature(name="item_id"), *features),
        context=features,
        realtime_cap=cap,
    )
    arrays = [a for a in schema.arrays if a.rows != "offset"]
    assert len(arrays) <= 16
    assert len(schema.arrays) == len(arrays) + 3
    assert len({a.name for a in schema.arrays}) == len(schema.arrays)


def test_config_survives_json() -> None:
    """A package's config reads back equal from its own JSON, hash of the layout included."""
    config = PackageConfig(version="v1", model=PRESETS["tiny"], features=SCHEMA)
    again = PackageConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.features.layout_hash == SCHEMA.layout_hash


def changed(**fields: object) -> FeatureSchema:
    """SCHEMA with some fields replaced, validated anew."""
    kept = {name: getattr(SCHEMA, name) for name in FeatureSchema.model_fields}
    return FeatureSchema.model_validate({**kept, **fields})


def test_layout_hash_follows_the_bytes_only() -> None:
    """Reordering features changes the layout's hash; another transform does not."""
    reordered = changed(behaviour=SCHEMA.behaviour[::-1])
    assert reordered.layout_hash != SCHEMA.layout_hash
    plain = tuple(
        NumberFeature(name=f.name) if isinstance(f, NumberFeature) else f for f in SCHEMA.item
    )
    assert changed(item=plain).layout_hash == SCHEMA.layout_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": (NumberFeature(name="price"),)}, "'item_id' is expected"),
        ({"cross": (NumberFeature(name="price"),)}, "repeated feature names"),
        ({"realtime_cap": -1}, "greater than or equal to 0"),
        ({"colour": 1}, "Extra inputs are not permitted"),
    ],
)
def test_bad_schemas_are_refused(change: dict[str, object], message: str) -> None:
    """A schema that could not be served is refused with the reason."""
    with pytest.raises(ValidationError, match=message):
        changed(**change)


NUMBER = NumberFeature(name="price")
CATEGORY = CategoryFeature(name="age", size=8)
ID = IdFeature(name="item_id")


@pytest.mark.parametrize(
    ("feature", "column", "message"),
    [
        (NUMBER, [1.0, float("nan")], r"price\[1\]: expected a finite float32"),
        (NUMBER, [float("inf"), 1.0], r"price\[0\]: expected a finite float32"),
        (NUMBER, [1.0, 1e39], r"price\[1\]: expected a finite float32"),
        (NUMBER, np.array([1, np.inf], np.float16), r"price\[1\]: expected a finite float32"),
        (NUMBER, [1.0], "price: expected 2 values, got 1"),
        (NUMBER, [1.0, "2"], r"price\[1\]: expected finite numbers, got str"),
        (NUMBER, [True, False], r"price\[0\]: expected finite numbers, got bool"),
        (NUMBER, [[1.0], [2.0]], "price: expected a flat list"),
        (NUMBER, [[1.0], 2.0], "price: expected a flat list"),
        (CATEGORY, [7, 8], r"age\[1\]: expected 0 <= value < 8"),
        (CATEGORY, [-1, 0], r"age\[0\]: expected 0 <= value < 8"),
        (CATEGORY, [1, 2.0], r"age\[1\]: expected integers, got float"),
        (ID, [1, 1 << 63], r"item_id\[1\]: expected integers"),
        (ID, [1, 1 << 70], r"item_id\[1\]: expected integers"),
        (ID, [None, 1], r"item_id\[0\]: expected integers, got NoneType"),
    ],
)
def test_values_that_do_not_fit_are_named(
    feature: NumberFeature, column: list[object], message: str
) -> None:
    """A value outside its feature is refused with the feature, the row and what was expected."""
    with pytest.raises(InvalidFeature, match=message):
        checked_column(feature, column, 2)


def test_columns_are_matched_by_name() -> None:
    """Unknown features and missing required ones are refused; defaults fill the others."""
    layout = SCHEMA.layouts["profile"]
    rows = rows_from_columns(layout, {"age": [3]}, 1)
    assert rows["ids"].tolist() == [[3, 0]]
    with pytest.raises(InvalidFeature, match="unknown feature; expected one of"):
        rows_from_columns(layout, {"colour": [3]}, 1)
    with pytest.raises(InvalidFeature, match="hour: missing; the feature is required"):
        rows_from_columns(SCHEMA.layouts["context"], {}, 1)
    assert empty_rows(SCHEMA.layouts["context"], 2)["ids"].tolist() == [[0], [0]]
