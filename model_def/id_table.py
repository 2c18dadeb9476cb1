"""Raw int64 ids -> rows: the key store, and the frozen table that serving probes.

A key store knows nothing of embeddings. Growing, it moves keys and row numbers alone
(`model_def.growing_table` keeps the values); frozen, the mapping is two arrays that NumPy,
PyTorch, ONNX and CUDA probe alike (`mtgr::id_lookup`). Row 0 is the unknown id's. NumPy only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Rows = NDArray[np.int32]

HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio (Knuth's multiplicative hashing)."""

MAX_PROBE = 16
"""Slots that a frozen table may need to try; a fuller table is rebuilt at twice the size."""


@dataclass(frozen=True)
class FrozenIdTable:
    """Open addressing with linear probing: `keys` int64 [C], `rows` int32 [C], 0 where empty.

    The first slot of id x is the top log2 C bits of (x ^ x >> 32) * HASH_MULTIPLIER mod 2^64.
    """

    keys: Ids
    rows: Rows
    max_probe: int

    def find(self, ids: Ids) -> Rows:
        """int32 [N]: the row of each id, 0 where unknown."""
        found, mask = np.zeros(len(ids), np.int32), len(self.keys) - 1
        pending, slots = np.arange(len(ids)), first_slots(ids, len(self.keys))
        for _ in range(self.max_probe):
            rows = self.rows[slots]
            hit = (self.keys[slots] == ids[pending]) & (rows != 0)
            found[pending[hit]] = rows[hit]
            on = (rows != 0) & ~hit
            pending, slots = pending[on], (slots[on] + 1) & mask
            if not len(pending):
                break
        return found


class KeyStore:
    """A growing map from ids to rows from 1 on, at most half full."""

    def __init__(self, capacity: int = 2):
        """`capacity`, a power of two, is where it starts."""
        self._table = _empty(capacity)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def find(self, ids: Ids) -> Rows:
        """int32 [N]: the row of each id, 0 where unknown."""
        return self._table.find(ids)

    def insert(self, ids: Ids, rows: Rows) -> None:
        """Add ids that it does not hold yet, each once, at rows that no other id has."""
        self._used += len(ids)
        needed = capacity_for(self._used)
        if needed > len(self._table.keys):
            old, kept = self._table, np.flatnonzero(self._table.rows)
            self._table = placed(_empty(needed), old.keys[kept], old.rows[kept])
        self._table = placed(self._table, ids, rows)

    def rows(self) -> Rows:
        """Every row in use, ascending."""
        return np.sort(self._table.rows[self._table.rows > 0])


class IdTable:
    """The ids of one table, in the order of their rows: what a checkpoint keeps of it."""

    def __init__(self, ids: Iterable[int] | NDArray[Any] = ()):
        values = ids if isinstance(ids, np.ndarray) else np.fromiter(ids, np.int64)
        first = np.unique(values, return_index=True)[1]
        self.ids: Ids = values[np.sort(first)].astype(np.int64)
        """int64 [len - 1]: id i has row i + 1."""

    def __len__(self) -> int:
        """Rows of the embedding, the unknown id's row 0 included."""
        return len(self.ids) + 1

    def freeze(self) -> FrozenIdTable:
        """The mapping as two arrays, at most half full, every probe at most MAX_PROBE."""
        rows = np.arange(1, len(self), dtype=np.int32)
        capacity = capacity_for(len(self.ids))
        while capacity <= max(1 << 20, 256 * len(self.ids)):
            frozen = placed(_empty(capacity), self.ids, rows)
            if frozen.max_probe <= MAX_PROBE:
                return frozen
            capacity *= 2
        raise ValueError(f"{len(self.ids)} ids collide in a table of {capacity} slots")


def first_slots(ids: Ids, capacity: int) -> Ids:
    """int64 [N]: the first slot of each id in a table of `capacity` (a power of two) slots."""
    bits = capacity.bit_length() - 1
    if not bits:
        return np.zeros(len(ids), np.int64)
    values = ids.astype(np.uint64)
    mixed = (values ^ (values >> np.uint64(32))) * HASH_MULTIPLIER
    return (mixed >> np.uint64(64 - bits)).astype(np.int64)


def capacity_for(ids: int) -> int:
    """Slots of a table at most half full, a power of two."""
    return 1 << max(1, (2 * ids - 1).bit_length())


def placed(table: FrozenIdTable, ids: Ids, rows: Rows) -> FrozenIdTable:
    """`table`, changed in place, with every id at its first slot free in its round."""
    mask, probes = len(table.keys) - 1, 0
    pending, slots = np.arange(len(ids)), first_slots(ids, len(table.keys))
    while len(pending):
        probes += 1
        free = np.flatnonzero(table.rows[slots] == 0)
        at, claims = slots[free], rows[pending[free]]
        # Of the ids that claim one slot the first wins: the last write stays, and rows differ.
        table.rows[at[::-1]] = claims[::-1]
        won = table.rows[at] == claims
        table.keys[at[won]] = ids[pending[free[won]]]
        lost = np.ones(len(pending), bool)
        lost[free[won]] = False
        pending, slots = pending[lost], (slots[lost] + 1) & mask
    return FrozenIdTable(table.keys, table.rows, max(table.max_probe, probes))


def _empty(capacity: int) -> FrozenIdTable:
    return FrozenIdTable(np.zeros(capacity, np.int64), np.zeros(capacity, np.int32), 0)
