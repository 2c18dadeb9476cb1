"""The fast decoders and the documented pydantic models accept and refuse exactly the same."""

import math
from typing import Any

import msgspec
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from model_def.schema import FeatureSchema
from service.errors import InvalidRequest
from service.http.documents import Documents
from service.http.validate import (
    Limits,
    behaviour,
    deadline_ms,
    rank_request,
    user_snapshot,
)
from service.http.wire import Wire
from tests.service.world import NOW_MS, SCHEMA, as_columns, event, profile, request

LIMITS = Limits(
    max_candidates=4,
    max_events=3,
    clock_skew_ms=0,
    default_deadline_ms=100,
    max_deadline_ms=1000,
)
WIRE = Wire(SCHEMA)
DOCUMENTS = Documents(SCHEMA, LIMITS, "t.")

odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 305),
    st.sampled_from([1 << 62, (1 << 63) - 1, 1 << 63, -(1 << 63), -(1 << 63) - 1, 1 << 64, 10**30]),
    st.sampled_from([NOW_MS - 1, NOW_MS, NOW_MS + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1.0, -0.0, 3.4028234e38, 3.5e38, 65504.0, 1e308]),
    st.text(max_size=3),
    st.sampled_from(["u" * 256, "u" * 257, "click", "exposure", "é", "\x00"]),
    st.lists(st.integers(0, 5), max_size=5),
    st.dictionaries(st.sampled_from(["price", "hour", "x"]), st.integers(0, 3), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a document that holds a value."""
    found = [path]
    if isinstance(value, dict):
        for name, inner in value.items():
            found += places(inner, (*path, name))
    if isinstance(value, list):
        for i, inner in enumerate(value):
            found += places(inner, (*path, i))
    return found


@st.composite
def damaged(draw: st.DrawFn, good: st.SearchStrategy[dict[str, Any]]) -> Any:
    """A good document with up to two values replaced, removed or added."""
    document = msgspec.json.decode(msgspec.json.encode(draw(good)))
    for _ in range(draw(st.integers(0, 2))):
        *parents, last = draw(st.sampled_from([p for p in places(document) if p] or [("x",)]))
        inner = document
        for step in parents:
            inner = inner[step]
        change = draw(st.sampled_from(["replace", "remove", "add", "copy"]))
        if change == "replace":
            inner[last] = draw(odd_values)
        elif change == "remove":
            del inner[last]
        elif isinstance(inner, dict):
            inner[draw(st.sampled_from(["extra", "top_k", "recall_score", "label"]))] = draw(
                odd_values
            )
        else:
            inner.append(inner[draw(st.integers(0, len(inner) - 1))])
    return document


rows = st.integers(1, 5).map(request)
columns = st.integers(1, 5).map(
    lambda n: request(candidates=as_columns(request(n)["candidates"]), top_k=2, deadline_ms=50)
)
snapshots = st.integers(1, 3).map(profile)
column_snapshots = snapshots.map(lambda body: body | {"lifelong": as_columns(body["lifelong"])})
label = {"request_id": "r", "item_id": 3, "action": "click"}
event_bodies = st.integers(1, 3).map(
    lambda n: {"user_id": "u", "events": [event(str(i)) | {"label": label} for i in range(n)]}
)


def plainly_consistent(kind: str, model: BaseModel) -> bool:
    """What spans several fields, said again without arrays."""
    document = model.model_dump(by_alias=True, exclude_unset=True)
    if kind == "events":
        return all(
            e["timestamp"] <= NOW_MS and (e.get("features") or e.get("label"))
            for e in document["events"]
        )
    if kind == "user":
        times, even = unpacked(document["lifelong"], "timestamp")
        bounded = [*times, document["snapshot_ms"]]
        ordered = bounded == sorted(bounded)
        return even and ordered and document["snapshot_ms"] <= NOW_MS
    ids, even = unpacked(document["candidates"], "item_id")
    timely = document.get("timestamp") is None or document["timestamp"] <= NOW_MS
    return even and len(set(ids)) == len(ids) and timely


def unpacked(table: Any, stamp: str) -> tuple[list[int], bool]:
    """Stamps of a table, and whether its columns are of one length."""
    if isinstance(table, list):
        return [row[stamp] for row in table], True
    lengths = {len(column) for column in table["features"].values()}
    lengths |= {len(column) for name, column in table.items() if name != "features"}
    return table[stamp], len(lengths) == 1


def fast(kind: str, body: bytes, format: Any = "json") -> Any:
    """The request that the hot path makes of a body, or None."""
    try:
        wire = getattr(WIRE, kind).decode(body, format)
        if kind == "rank":
            deadline_ms(wire, LIMITS)
            return rank_request(wire, SCHEMA, LIMITS, NOW_MS, "r", 3)
        make = behaviour if kind == "events" else user_snapshot
        return make(wire, SCHEMA, LIMITS, NOW_MS)
    except InvalidRequest:
        return None


def documented(kind: str, body: bytes) -> bool:
    """Whether the pydantic models, and plain checks beside them, accept a body."""
    try:
        return plainly_consistent(kind, getattr(DOCUMENTS, kind).model_validate_json(body))
    except ValidationError:
        return False


def agree(kind: str, document: Any) -> None:
    body = msgspec.json.encode(document)
    assert (fast(kind, body) is not None) == documented(kind, body)


many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(damaged(st.one_of(rows, columns)))
def test_rank_bodies(document: Any) -> None:
    """A ranking request passes both or neither."""
    agree("rank", document)


@many
@given(damaged(event_bodies))
def test_event_bodies(document: Any) -> None:
    """Events pass both or neither."""
    agree("events", document)


@many
@given(damaged(st.one_of(snapshots, column_snapshots)))
def test_user_bodies(document: Any) -> None:
    """A user's snapshot passes both or neither."""
    agree("user", document)


json_bytes = msgspec.json.encode(request(2))


@many
@given(st.integers(0, len(json_bytes)), st.integers(0, 4), st.binary(max_size=3))
def test_raw_json(start: int, length: int, patch: bytes) -> None:
    """Bytes that are almost JSON pass both or neither, and neither raises anything else."""
    body = json_bytes[:start] + patch + json_bytes[start + length :]
    assert (fast("rank", body) is not None) == documented("rank", body)


@many
@given(damaged(st.one_of(rows, columns)))
def test_messagepack_means_what_json_means(document: Any) -> None:
    """The same document is accepted or refused alike in both formats, to the same request."""
    if any(isinstance(v, int) and not -(1 << 63) <= v < 1 << 64 for v in leaves(document)):
        return  # MessagePack has no such integer
    by_json = fast("rank", msgspec.json.encode(document))
    by_msgpack = fast("rank", msgspec.msgpack.encode(document), "msgpack")
    assert (by_json is None) == (by_msgpack is None)
    if by_json is not None:
        assert by_json.candidates.tobytes() == by_msgpack.candidates.tobytes()
        assert by_json.context.tobytes() == by_msgpack.context.tobytes()
        assert by_json.item_ids.tolist() == by_msgpack.item_ids.tolist()


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [value]


@many
@given(st.binary(max_size=80))
def test_any_messagepack_bytes_are_a_request_or_a_refusal(tail: bytes) -> None:
    """Hostile lengths, nesting and types end in a refusal, never in an exception."""
    whole = msgspec.msgpack.encode(request(1))
    fast("rank", tail, "msgpack")
    fast("rank", whole[: len(whole) // 2] + tail, "msgpack")


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=4),
    st.sampled_from(["<f2", "<f4", "<f8", "u1", "<i4", "<i8"]),
)
def test_binary_columns_mean_what_lists_mean(prices: list[float], dtype: str) -> None:
    """A binary column is accepted where its values are, and gives the same rows."""
    with np.errstate(all="ignore"):
        values = np.array(prices, "<f8").astype(dtype)
    table = as_columns(request(len(prices))["candidates"])
    plain = table | {"features": table["features"] | {"price": values.tolist()}}
    column = {"dtype": dtype, "data": values.tobytes()}
    packed = table | {"features": table["features"] | {"price": column}}
    expected, got = (
        fast("rank", msgspec.msgpack.encode(request(candidates=c)), "msgpack")
        for c in (plain, packed)
    )
    finite = all(math.isfinite(v) and abs(v) <= 3.4028234663852886e38 for v in values.tolist())
    assert (expected is not None) == (got is not None) == finite
    if finite:
        assert expected.candidates.tobytes() == got.candidates.tobytes()


def test_features_may_be_named_like_anything() -> None:
    """Python's words and pydantic's methods are fine names of features."""
    names = ("class", "copy", "model_dump", "json", "schema", "from")
    schema = FeatureSchema.model_validate(
        SCHEMA.model_dump() | {"cross": [{"kind": "number", "name": name} for name in names]}
    )
    features = dict.fromkeys(names, 1.0) | {"cuisine": 1, "price": 1.0}
    body = msgspec.json.encode(request(candidates=[{"item_id": 1, "features": features}]))
    wire = Wire(schema).rank.decode(body, "json")
    assert rank_request(wire, schema, LIMITS, NOW_MS, "r", 1).candidates["numbers"].tolist() == [
        [1.0] * 7
    ]
    Documents(schema, LIMITS, "n.").rank.model_validate_json(body)
