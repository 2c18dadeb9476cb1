"""Reading columns with simdjson says nothing that the typed decoder would not say."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.arrays import as_array
from service.http.json_columns import MOST_BYTES
from service.http.wire import Decoders, Wire
from tests.service.test_decoders import columns, damaged, many
from tests.service.world import SCHEMA, as_columns, profile, request

pytest.importorskip("simdjson", reason="no wheel of pysimdjson for this Python")

WIRE = Wire(SCHEMA)
TABLE = as_columns(request(3)["candidates"])
BODY = msgspec.json.encode(request(candidates=TABLE))


def agree(decoders: Decoders, body: bytes) -> bool:
    """Whether a body is read as columns, and then as the typed decoder decodes it."""
    read = decoders._columns.read(body)
    if read is None:
        return False
    assert plain(read) == plain(decoders._decoders["json"].decode(body))
    return True


def plain(value: Any) -> Any:
    """Structs as dicts, a column as its type and its bits: 0.0 is not -0.0."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list):
        value = as_array(value, "d" if any(isinstance(v, float) for v in value) else "q")
    if isinstance(value, np.ndarray):
        return (value.dtype, value.tobytes()) if len(value) else []
    return value


def test_columns_are_read() -> None:
    """What callers send is read this way, of candidates and of a lifelong sequence."""
    assert agree(WIRE.rank, BODY)
    assert agree(WIRE.rank, msgspec.json.format(BODY, indent=2))
    user = profile(4)
    assert agree(WIRE.user, msgspec.json.encode(user | {"lifelong": as_columns(user["lifelong"])}))


@many
@given(damaged(columns))
def test_damaged_columns(document: Any) -> None:
    """A damaged body is read alike, or not this way."""
    agree(WIRE.rank, msgspec.json.encode(document))


@many
@given(st.integers(0, len(BODY)), st.integers(0, 4), st.binary(max_size=3))
def test_raw_bytes(start: int, length: int, patch: bytes) -> None:
    """Bytes that are almost JSON are read alike, or not this way."""
    agree(WIRE.rank, BODY[:start] + patch + BODY[start + length :])


@many
@given(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3))
def test_numbers_are_the_same_to_the_bit(prices: list[float]) -> None:
    """Every float is read as the nearest one, however it is written."""
    for write in (repr, "{:.3e}".format, "{:.25f}".format):
        text = ",".join(map(write, prices)).encode()
        assert agree(WIRE.rank, BODY.replace(b"[2.5,3.5,4.5]", b"[" + text + b"]"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"[2.5,3.5,4.5]", b"[[2.5,3.5],4.5]"),
        (b"[2.5,3.5,4.5]", b"[2.5,3.5,4.5,[]]"),
        (b"[2.5,3.5,4.5]", b"{}"),
        (b"[2.5,3.5,4.5]", b"5"),
        (b"[2.5,3.5,4.5]", b"null"),
        (b"[2.5,3.5,4.5]", b"[2.5,true,4.5]"),
        (b"[2.5,3.5,4.5]", b"[2.5,NaN,4.5]"),
        (b"[2.5,3.5,4.5]", b"[2.5,1e400,4.5]"),
        (b"[2.5,3.5,4.5]", b"[2.5,123456789012345678901234567890,4.5]"),
        (b"[1,2,3],", b"[1,2.0,3],"),
        (b"[1,2,3],", b"[1,9223372036854775808,3],"),
        (b'"price"', b'"cuisine"'),
        (b'"hour":12', b'"hour":12,"hour":12'),
        (b'"user_id":"u1"', b'"user_id":"u1","user_id":"u1"'),
        (b'"user_id":"u1"', b'"user_id":"[u1"'),
        (b'"user_id":"u1"', b'"user_id":"\\ud800"'),
        (b'"user_id":"u1"', b'"user_id":"\xff"'),
        (b'"user_id":"u1"', b'"user_id":[]'),
        (b'"user_id":"u1"', b'"user_id":{}'),
        (b'"user_id":"u1",', b""),
        (b'{"user_id"', b'\xef\xbb\xbf{"user_id"'),
        (b'{"user_id"', b' {"user_id"'),
        (b'"hour":12', b'"hour":' + b'{"hour":' * 2000 + b"12" + b"}" * 2000),
    ],
)
def test_the_unusual_is_left_to_the_typed_decoder(old: bytes, new: bytes) -> None:
    """It decides what is wrong, and what is merely odd."""
    assert BODY.count(old) >= 1
    assert not agree(WIRE.rank, BODY.replace(old, new, 1))
    assert agree(WIRE.rank, BODY)  # what was refused has left nothing behind


def test_memory_is_bounded() -> None:
    """A body larger than is read this way is left to the typed decoder."""
    assert not agree(WIRE.rank, BODY.replace(b"{", b"{" + b" " * MOST_BYTES, 1))
