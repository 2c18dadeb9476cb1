"""Raw int64 ids -> embedding rows: a table that grows while training and freezes for serving.

Growing, an id's row is its place in order of first sight, from 1; row 0 is the unknown id.
Frozen, the same mapping is two arrays that PyTorch, ONNX and CUDA probe alike (`mtgr::id_lookup`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio (Knuth's multiplicative hashing)."""

MAX_PROBE = 16
"""Slots that a frozen table may need to try; a fuller table is rebuilt at twice the size."""


@dataclass(frozen=True)
class FrozenIdTable:
    """Open addressing with linear probing: `keys` int64 [C], `rows` int32 [C], 0 where empty.

    The first slot of id x is the top log2 C bits of (x ^ x >> 32) * HASH_MULTIPLIER mod 2^64.
    """

    keys: NDArray[np.int64]
    rows: NDArray[np.int32]
    max_probe: int


class IdTable:
    """The ids of one table, in order of first sight."""

    def __init__(self, ids: Iterable[int] = ()):
        self._rows: dict[int, int] = {}
        self.add(np.fromiter(ids, np.int64))

    def __len__(self) -> int:
        """Rows of the embedding, the unknown id's row 0 included."""
        return len(self._rows) + 1

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64 [len - 1]: id i has row i + 1."""
        return np.fromiter(self._rows, np.int64, len(self._rows))

    def add(self, ids: NDArray[Any], min_count: int = 1) -> None:
        """Give a row to each id seen at least `min_count` times here and not known yet."""
        unique, first, counts = np.unique(ids, return_index=True, return_counts=True)
        admitted = unique[np.argsort(first)][counts[np.argsort(first)] >= min_count]
        for value in admitted.tolist():
            self._rows.setdefault(value, len(self._rows) + 1)

    def freeze(self) -> FrozenIdTable:
        """The mapping as two arrays, at most half full, every probe at most MAX_PROBE."""
        ids = self.ids
        capacity = 1 << max(1, (2 * len(ids) - 1).bit_length())
        while capacity <= max(1 << 20, 256 * len(ids)):
            if (frozen := _place(ids, capacity)) is not None:
                return frozen
            capacity *= 2
        raise ValueError(f"{len(ids)} ids collide in a table of {capacity} slots")


def first_slots(ids: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """int64 [N]: the first slot of each id in a table of `capacity` (a power of two) slots."""
    bits = capacity.bit_length() - 1
    if not bits:
        return np.zeros(len(ids), np.int64)
    values = ids.astype(np.uint64)
    mixed = (values ^ (values >> np.uint64(32))) * HASH_MULTIPLIER
    return (mixed >> np.uint64(64 - bits)).astype(np.int64)


def _place(ids: NDArray[np.int64], capacity: int) -> FrozenIdTable | None:
    """Every id at its first slot free in its round, or None if one needs over MAX_PROBE."""
    keys, rows = np.zeros(capacity, np.int64), np.zeros(capacity, np.int32)
    pending, slots = np.arange(len(ids)), first_slots(ids, capacity)
    for probe in range(MAX_PROBE):
        at = (slots[pending] + probe) & (capacity - 1)
        free = np.flatnonzero(rows[at] == 0)
        _, winners = np.unique(at[free], return_index=True)
        placed = free[winners]
        keys[at[placed]] = ids[pending[placed]]
        rows[at[placed]] = pending[placed] + 1
        pending = np.delete(pending, placed)
        if not len(pending):
            return FrozenIdTable(keys, rows, probe + 1)
    return None
