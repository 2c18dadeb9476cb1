"""Stored records: what is written is read back, and damage is never read as data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_def.batch import Rows
from service.features.codec import HEADER, ItemCodec, LogCodec, TableCodec, Unreadable
from service.features.store import key
from tests.service.world import OTHER_SCHEMA, SCHEMA

LAYOUT = SCHEMA.layouts["realtime"]
HASH = SCHEMA.layout_hash


def random_rows(count: int, seed: int) -> Rows:
    """Rows of any bytes that are a valid record."""
    rng = np.random.default_rng(seed)
    rows: Rows = np.frombuffer(rng.bytes(count * LAYOUT.record.itemsize), LAYOUT.record).copy()
    rows["categories"] %= 4
    return rows


counts = st.integers(0, 12)
seeds = st.integers(0, 1 << 32)


@given(counts, seeds, st.integers(0, 1 << 62))
def test_a_table_round_trips(count: int, seed: int, snapshot_ms: int) -> None:
    """Decoding gives back every byte and the snapshot time."""
    codec, rows = TableCodec(LAYOUT, HASH), random_rows(count, seed)
    time, back = codec.decode(codec.encode(snapshot_ms, rows))
    assert (time, back.tobytes()) == (snapshot_ms, rows.tobytes())


@given(counts, seeds, st.data())
def test_no_flipped_byte_of_a_table_goes_unseen(count: int, seed: int, data: st.DataObject) -> None:
    """Any change of one byte makes a table unreadable, and says it is not absent."""
    codec = TableCodec(LAYOUT, HASH)
    value = bytearray(codec.encode(5, random_rows(count, seed)))
    place = data.draw(st.integers(0, len(value) - 1))
    value[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Unreadable) as caught:
        codec.decode(bytes(value))
    assert caught.value.reason in {"truncated", "corrupt", "old_schema"}


@given(counts, seeds, st.data())
def test_a_table_cut_short_is_truncated(count: int, seed: int, data: st.DataObject) -> None:
    """A value that lost its end says so."""
    value = TableCodec(LAYOUT, HASH).encode(5, random_rows(count, seed))
    kept = data.draw(st.integers(0, len(value) - 1))
    with pytest.raises(Unreadable, match="truncated"):
        TableCodec(LAYOUT, HASH).decode(value[:kept])


@given(st.binary(max_size=200))
def test_garbage_is_never_a_table(value: bytes) -> None:
    """Bytes that nobody wrote are refused, whatever they are."""
    with pytest.raises(Unreadable):
        TableCodec(LAYOUT, HASH).decode(value)
    with pytest.raises(Unreadable):
        TableCodec(LAYOUT, HASH).decode(HEADER.pack(b"MTGR", 1, HASH, 0, 0) + value)


def test_another_layout_is_old_schema() -> None:
    """A record of another layout is named so, and a missing one is absent."""
    value = TableCodec(LAYOUT, OTHER_SCHEMA.layout_hash).encode(5, random_rows(2, 0))
    with pytest.raises(Unreadable, match="old_schema"):
        TableCodec(LAYOUT, HASH).decode(value)
    with pytest.raises(Unreadable, match="absent"):
        TableCodec(LAYOUT, HASH).decode(None)
    log = LogCodec(LAYOUT, OTHER_SCHEMA.layout_hash)
    rows, reason = LogCodec(LAYOUT, HASH).decode(log.header + b"".join(log.encode(rows_of(2))))
    assert (len(rows), reason) == (0, "old_schema")


def rows_of(count: int) -> Rows:
    return random_rows(count, count)


@given(counts, seeds, st.integers(0, 40))
def test_a_log_round_trips_but_for_a_torn_tail(count: int, seed: int, extra: int) -> None:
    """Whole records are read back; a torn last one is left out and named."""
    codec, rows = LogCodec(LAYOUT, HASH), random_rows(count, seed)
    torn = codec.encode(random_rows(1, seed + 1))[0][: extra % codec.record_bytes]
    back, reason = codec.decode(codec.header + b"".join(codec.encode(rows)) + torn)
    assert back.tobytes() == rows.tobytes()
    assert reason == ("truncated" if torn else None)


@given(st.integers(1, 12), seeds, st.data())
def test_a_damaged_event_is_left_out_and_the_others_stay(
    count: int, seed: int, data: st.DataObject
) -> None:
    """One flipped byte costs one event, never another's data."""
    codec, rows = LogCodec(LAYOUT, HASH), random_rows(count, seed)
    records = [bytearray(record) for record in codec.encode(rows)]
    row = data.draw(st.integers(0, count - 1))
    place = data.draw(st.integers(0, codec.record_bytes - 1))
    records[row][place] ^= data.draw(st.integers(1, 255))
    back, reason = codec.decode(codec.header + b"".join(records))
    assert back.tobytes() == np.delete(rows, row).tobytes()
    assert reason == "corrupt"


@given(counts, seeds)
def test_items_round_trip_and_damage_is_seen(count: int, seed: int) -> None:
    """Features and popularity come back together, each item checked alone."""
    layout = SCHEMA.layouts["item"]
    rng = np.random.default_rng(seed)
    rows = np.frombuffer(rng.bytes(count * layout.record.itemsize), layout.record)
    codec, popularity = ItemCodec(layout, HASH), rng.random(count)
    values = codec.encode(rows, popularity)
    if values:
        values[-1] = values[-1][:-5] + bytes(b ^ 1 for b in values[-1][-5:])
    records, good = codec.decode(values)
    assert good.tolist() == [True] * (count - 1) + [False] * bool(count)
    assert records["features"][good].tobytes() == rows[: len(rows) - 1].tobytes() * bool(count)
    assert records["popularity"][good].tolist() == popularity[:-1].tolist()


def test_categories_beyond_the_schema_are_unknown() -> None:
    """A retrained model with fewer categories reads the rest as 0, never past its table."""
    rows = random_rows(3, 1)
    rows["categories"][:, 0] = [3, 200, 1]
    codec = TableCodec(LAYOUT, HASH)
    assert codec.decode(codec.encode(5, rows))[1]["categories"][:, 0].tolist() == [3, 0, 1]


@given(st.text(min_size=1, max_size=50))
def test_a_user_has_one_slot_whatever_the_id(user_id: str) -> None:
    """Keys hold one pair of braces, around the encoded id: a cluster's hash tag."""
    keys = [key(SCHEMA, part, user_id) for part in ("profile", "static", "rt")]
    tags = {k[k.index("{") : k.index("}") + 1] for k in keys}
    assert len(tags) == 1
    assert all(k.count("{") == k.count("}") == 1 and k.endswith("}") for k in keys)
