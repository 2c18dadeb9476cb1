"""The bytes of a feature value: packed records that say when they cannot be trusted.

A *table* (profile, lifelong) is a header and records under one CRC-32. A *log* (real-time) is the
layout's hash and records that carry a checksum each, so a script inside Redis may append to it
without understanding it. Reading never repairs: what does not check out is named and left out.
Knows nothing of Redis.
"""

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_def.batch import Rows
from model_def.schema import Layout

MAGIC = b"MTGR"
HEADER = struct.Struct("<4sIQqI")
"""Magic, record count, layout hash, snapshot time (ms), CRC-32 of all the rest."""

HASH = struct.Struct("<Q")


class Unreadable(Exception):
    """A stored value that cannot be used. `reason`: absent, truncated, corrupt or old_schema."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


class TableCodec:
    """A snapshot's rows of one layout."""

    def __init__(self, layout: Layout, layout_hash: int):
        self._layout, self._hash = layout, layout_hash

    def encode(self, snapshot_ms: int, rows: Rows) -> bytes:
        """Header and records of `rows`."""
        records = rows.tobytes()
        header = HEADER.pack(MAGIC, len(rows), self._hash, snapshot_ms, 0)
        checksum = zlib.crc32(records, zlib.crc32(header))
        return HEADER.pack(MAGIC, len(rows), self._hash, snapshot_ms, checksum) + records

    def decode(self, value: bytes | None) -> tuple[int, Rows]:
        """Snapshot time and rows; raises Unreadable."""
        if value is None:
            raise Unreadable("absent")
        if len(value) < HEADER.size:
            raise Unreadable("truncated")
        magic, count, layout_hash, snapshot_ms, checksum = HEADER.unpack_from(value)
        if magic != MAGIC:
            raise Unreadable("corrupt")
        if layout_hash != self._hash:
            raise Unreadable("old_schema")
        missing = HEADER.size + count * self._layout.record.itemsize - len(value)
        if missing:
            raise Unreadable("truncated" if missing > 0 else "corrupt")
        header = HEADER.pack(magic, count, layout_hash, snapshot_ms, 0)
        if zlib.crc32(memoryview(value)[HEADER.size :], zlib.crc32(header)) != checksum:
            raise Unreadable("corrupt")
        rows = np.frombuffer(value, self._layout.record, offset=HEADER.size)
        return snapshot_ms, known_categories(self._layout, rows)


class CheckedRecords:
    """Records of one dtype, each behind a 32-bit checksum seeded by the layout's hash.

    The checksum is multilinear hashing over 32-bit words modulo 2^64, its high half kept: any
    change of a record goes unseen with probability 2^-32, and all records of a sequence are
    checked by one integer product. Source: Lemire and Kaser, "Strongly universal string hashing
    is fast", section 3.
    """

    def __init__(self, record: np.dtype[Any], layout_hash: int):
        padding = -record.itemsize % 4
        self.dtype = np.dtype(
            [("checksum", "<u4"), ("record", record), ("padding", "u1", (padding,))]
        )
        words = self.dtype.itemsize // 4 - 1
        drawn = np.random.PCG64(layout_hash).random_raw(words + 1)
        self._offset, self._factors = drawn[0], drawn[1:]

    def encode(self, rows: Rows) -> NDArray[np.void]:
        """`rows` with their checksums, as one array of `dtype`."""
        records = np.zeros(len(rows), self.dtype)
        records["record"] = rows
        records["checksum"] = self._checksums(records)
        return records

    def decode(self, buffer: bytes | memoryview) -> tuple[Rows, NDArray[np.bool_]]:
        """Every record of `buffer`, whose length is a multiple of the record's, and which hold."""
        records = np.frombuffer(buffer, self.dtype)
        return records["record"], records["checksum"] == self._checksums(records)

    def _checksums(self, records: NDArray[np.void]) -> NDArray[np.uint32]:
        words = records.view(np.dtype("<u4")).reshape(-1, self.dtype.itemsize // 4)[:, 1:]
        mixed = (words * self._factors).sum(axis=1, dtype=np.uint64) + self._offset
        high: NDArray[np.uint32] = (mixed >> np.uint64(32)).astype(np.uint32)
        return high


class LogCodec:
    """A sequence that grows by appending."""

    def __init__(self, layout: Layout, layout_hash: int):
        self._layout = layout
        self._checked = CheckedRecords(layout.record, layout_hash)
        self.header = HASH.pack(layout_hash)
        self.record_bytes = self._checked.dtype.itemsize

    def encode(self, rows: Rows) -> list[bytes]:
        """One value to append for each row."""
        return [record.tobytes() for record in self._checked.encode(rows)]

    def decode(self, value: bytes | None) -> tuple[Rows, str | None]:
        """The rows that hold, in the order they came, and why others were left out, if any."""
        if value is None:
            return np.zeros(0, self._layout.record), None
        if value[: HASH.size] != self.header:
            short = len(value) < HASH.size
            return np.zeros(0, self._layout.record), "truncated" if short else "old_schema"
        whole, torn = divmod(len(value) - HASH.size, self.record_bytes)
        body = memoryview(value)[HASH.size : HASH.size + whole * self.record_bytes]
        rows, good = self._checked.decode(body)
        reason = "truncated" if torn else None
        if not good.all():
            rows, reason = rows[good], "corrupt"
        return known_categories(self._layout, rows), reason


class ItemCodec:
    """An item's features and its popularity, in one checked record."""

    def __init__(self, layout: Layout, layout_hash: int):
        self._layout = layout
        self._dtype = np.dtype([("popularity", "<f8"), ("features", layout.record)])
        self._checked = CheckedRecords(self._dtype, layout_hash)
        self.record_bytes = self._checked.dtype.itemsize

    def encode(self, rows: Rows, popularity: NDArray[np.floating]) -> list[bytes]:
        """One value for each item."""
        records = np.zeros(len(rows), self._dtype)
        records["features"], records["popularity"] = rows, popularity
        return [record.tobytes() for record in self._checked.encode(records)]

    def decode(self, values: list[bytes]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Records (`popularity`, `features`) of values of `record_bytes` each, and which hold."""
        records, good = self._checked.decode(b"".join(values))
        return records, good


def known_categories(layout: Layout, rows: Rows) -> Rows:
    """`rows` with categories outside their feature's size made 0, unknown.

    A retrained model may have fewer categories than the one whose records it reads.
    """
    for carrier in ("ids", "categories"):
        if not layout.bounded[carrier]:
            continue
        values = np.ascontiguousarray(rows[carrier].T)
        low, high = (bound.astype(values.dtype) for bound in layout.ranges[carrier])
        odd = (values < low) | (values > high)
        if odd.any():
            rows = rows.copy()
            rows[carrier][odd.T] = 0
    return rows
