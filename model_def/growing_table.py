"""An id table while it trains: keys apart from values, admission, eviction, and its own Adam.

The key store maps an id to a row; the values (embedding and Adam's two moments) and the metadata
(count, time last seen, updates) lie in chunks by row. So growth replicates keys and row numbers
alone, and never moves an embedding. Source: paper section 5, "Dynamic Hash Table".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model_def.chunks import Chunks
from model_def.id_table import Ids, IdTable, KeyStore, Rows, capacity_for

Floats = NDArray[np.float32]
State = dict[str, NDArray[Any]]

USE = np.dtype([("id", "<i8"), ("count", "<i8"), ("seen_ms", "<i8"), ("updates", "<i4")])
"""Metadata of a row: its id, occurrences while counted, time last seen, steps that changed it."""

BETAS, EPS = (0.9, 0.999), 1e-8
"""Adam's, as PyTorch's defaults."""


@dataclass(frozen=True)
class Unique:
    """The distinct ids of a lookup, in order of first sight, and which of them each one was."""

    ids: Ids
    inverse: Ids
    counts: Ids


@dataclass(frozen=True)
class Found:
    """Distinct rows of a lookup [U], their records [U, 3, width], and the place of each id [N]."""

    rows: Rows
    records: Floats
    places: Ids


@dataclass(frozen=True)
class Admission:
    """Which ids get a row, and how many at most."""

    min_count: int = 1
    """Occurrences before an id has a row of its own; until then it shares the unknown id's."""
    max_ids: int | None = None
    """At more than these, the ids seen longest ago give way until nine tenths are left."""


class GrowingTable:
    """One table; row 0 is the unknown id's, zero at first and trained by all that share it."""

    def __init__(
        self, width: int, std: float, seed: int, admission: Admission, reserve: int = 0
    ) -> None:
        """New rows are drawn of spread `std`; `reserve` makes room for so many ids at once."""
        self._width, self._std, self._seed, self._admission = width, std, seed, admission
        self._keys = KeyStore(capacity_for(reserve))
        self._records = Chunks(np.float32, (3, width))
        self._uses = Chunks(USE)
        self._next, self._free = 1, np.zeros(0, np.int32)
        self._waiting = _Waiting()
        self._reserve(reserve + 1)

    def __len__(self) -> int:
        """Ids that have a row."""
        return len(self._keys)

    def look_up(self, ids: Ids, at_ms: int | None = None) -> Found:
        """Rows of ids [N], each distinct one looked up once.

        With a time they are counted and admitted, as seen then; without, only found.
        """
        unique = deduplicated(ids)
        rows = self._keys.find(unique.ids)
        if at_ms is not None:
            self._count(unique, rows, at_ms)
            self._admit(unique, rows, at_ms)
        known, places = rows > 0, unique.inverse
        if not known.all():  # all that are unknown share place 0
            places = np.where(known, np.cumsum(known), 0)[places]
            rows = np.append(np.int32(0), rows[known])
        return Found(rows, self._records.take(rows), places)

    def update(self, found: Found, gradient: Floats, rate: float, decay: float = 0.0) -> None:
        """One Adam step of the rows found, with decoupled weight decay; no other row is touched.

        `gradient` is [U, width]. A row's bias correction counts its own updates, so an id that
        comes late starts as gently as one that came first.
        """
        uses = self._uses.take(found.rows)
        uses["updates"] += 1
        steps = uses["updates"][:, None].astype(np.float32)
        value, first, second = (found.records[:, part] for part in range(3))
        first += (1 - BETAS[0]) * (gradient - first)
        second += (1 - BETAS[1]) * (gradient * gradient - second)
        value *= np.float32(1 - rate * decay)
        unbiased = np.sqrt(second / (1 - np.float32(BETAS[1]) ** steps))
        value -= rate / (1 - np.float32(BETAS[0]) ** steps) * first / (unbiased + EPS)
        self._records.put(found.rows, found.records)
        self._uses.put(found.rows, uses)

    def evict(self, most: int) -> None:
        """Keep the `most` ids seen last, of equals the most frequent; the others' rows are free.

        Ids that wait for admission start again from nothing.
        """
        self._waiting = _Waiting()
        rows = self._keys.rows()
        if len(rows) <= most:
            return
        uses = self._uses.take(rows)
        kept = np.sort(np.lexsort((-uses["count"], -uses["seen_ms"]))[:most])
        self._free = np.append(self._free, np.delete(rows, kept))
        self._keys = KeyStore()
        self._keys.insert(uses["id"][kept], rows[kept])

    def frozen(self) -> tuple[IdTable, Floats, NDArray[Any]]:
        """For serving: the ids; embeddings [len, width], the unknown id's first; metadata (USE)."""
        rows = self._keys.rows()
        uses = self._uses.take(rows)
        return IdTable(uses["id"]), self._records.take(_with_unknown(rows))[:, 0], uses

    def state(self) -> State:
        """All of it as arrays, for `restore`."""
        rows = _with_unknown(self._keys.rows())
        return {
            "rows": rows,
            "records": self._records.take(rows),
            "uses": self._uses.take(rows).view(np.uint8),
            "free": self._free,
            "next": np.array([self._next]),
            **self._waiting.state(),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue where `state` was taken, in a table just made with the same arguments."""
        self._next, self._free = int(state["next"][0]), state["free"]
        self._reserve(self._next)
        rows, uses = state["rows"], state["uses"].view(USE)
        self._records.put(rows, state["records"])
        self._uses.put(rows, uses)
        self._keys.insert(uses["id"][1:], rows[1:])
        self._waiting.count(state["waiting_ids"], state["waiting_counts"])

    def _count(self, unique: Unique, rows: Rows, at_ms: int) -> None:
        known = np.flatnonzero(rows)
        uses = self._uses.take(rows[known])
        uses["count"] += unique.counts[known]
        uses["seen_ms"] = np.maximum(uses["seen_ms"], at_ms)
        self._uses.put(rows[known], uses)

    def _admit(self, unique: Unique, rows: Rows, at_ms: int) -> None:
        """Give rows to new ids seen often enough, and write them into `rows`."""
        new = np.flatnonzero(rows == 0)
        counts, most = unique.counts[new], self._admission.max_ids
        if self._admission.min_count > 1:
            counts = self._waiting.count(unique.ids[new], counts)
            often = counts >= self._admission.min_count
            new, counts = new[often], counts[often]
        if most is not None and len(self) + len(new) > most:
            new, counts = new[:most], counts[:most]
            self.evict(max(0, most * 9 // 10 - len(new)))
            rows[:] = self._keys.find(unique.ids)
        if not len(new):
            return
        ids, reused = unique.ids[new], self._free[: len(new)]
        self._free = self._free[len(reused) :]
        fresh = np.arange(self._next, self._next + len(new) - len(reused), dtype=np.int32)
        self._next += len(fresh)
        self._reserve(self._next)
        rows[new] = given = np.append(reused, fresh)
        self._keys.insert(ids, given)
        records = np.zeros((len(ids), 3, self._width), np.float32)
        records[:, 0] = self._std * unit_noise(ids, self._width, self._seed)
        self._records.put(given, records)
        uses = np.zeros(len(ids), USE)
        uses["id"], uses["count"], uses["seen_ms"] = ids, counts, at_ms
        self._uses.put(given, uses)

    def _reserve(self, rows: int) -> None:
        self._records.reserve(rows)
        self._uses.reserve(rows)


class _Waiting:
    """Counts of ids that were not seen often enough yet."""

    def __init__(self) -> None:
        self._keys = KeyStore()
        self._ids, self._counts = Chunks(np.int64), Chunks(np.int64)

    def count(self, ids: Ids, counts: Ids) -> Ids:
        """Add `counts` to distinct ids, and return their totals."""
        rows = self._keys.find(ids)
        new = np.flatnonzero(rows == 0)
        rows[new] = np.arange(len(self._keys) + 1, len(self._keys) + 1 + len(new))
        self._keys.insert(ids[new], rows[new])
        for chunks in (self._ids, self._counts):
            chunks.reserve(len(self._keys) + 1)
        self._ids.put(rows, ids)
        totals = self._counts.take(rows) + counts
        self._counts.put(rows, totals)
        return totals

    def state(self) -> State:
        rows = self._keys.rows()
        if not len(rows):
            return {f"waiting_{name}": np.zeros(0, np.int64) for name in ("ids", "counts")}
        return {"waiting_ids": self._ids.take(rows), "waiting_counts": self._counts.take(rows)}


def deduplicated(ids: Ids) -> Unique:
    """The distinct ids of a lookup, by Arrow's hash table (NumPy's `unique` would sort)."""
    encoded = pa.array(ids).dictionary_encode()
    inverse = encoded.indices.to_numpy().astype(np.int64)
    distinct = encoded.dictionary.to_numpy()
    return Unique(distinct, inverse, np.bincount(inverse, minlength=len(distinct)))


def unit_noise(ids: Ids, width: int, seed: int) -> Floats:
    """[N, width] of mean 0 and spread 1, uniform, a function of each id and the seed alone.

    So an id starts alike whenever it is admitted, in whatever batch. Source: SplitMix64 (Steele et
    al., "Fast Splittable Pseudorandom Number Generators"), one draw a counter.
    """
    counter = _mixed(ids.astype(np.uint64) + _mixed(np.array([seed], np.uint64)))
    steps = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    unit = (_mixed(counter[:, None] + steps) >> np.uint64(40)).astype(np.float32) / (1 << 24)
    return np.asarray((unit - 0.5) * np.sqrt(12), np.float32)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _with_unknown(rows: Rows) -> Rows:
    return np.append(np.int32(0), rows)
