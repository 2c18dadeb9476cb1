"""Numbers about the past of a (user, item, context): counts, recency, ratios, lifts, trends.

Every one of them reads interactions strictly earlier than the asking row's time, and nothing
else: that is the one law of this module, and what keeps an import free of leaks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_def.data.mapping import PastNumber

DAY_MS = 86_400_000

NEVER_DAYS = 1000.0
"""Recency where nothing came before."""

PRIOR = 3.0
"""Interactions' worth of everybody's behaviour that a `lift` starts from."""

Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]
Range = tuple[Integers, Integers]


class PastIndex:
    """Interactions by key and time, for questions about those before a given time.

    `order` lists interactions by key, then time; those of key code c start at `first[c]`.
    """

    def __init__(self, key: Integers, time_ms: Integers):
        self._keys, code = np.unique(key, return_inverse=True)
        self._start = int(time_ms.min(initial=0))
        self._span = int(time_ms.max(initial=0)) - self._start + 2
        if (len(self._keys) + 1) * self._span >= 1 << 62:
            raise ValueError("the interactions span too long a time for 64-bit sort keys")
        place = code * self._span + (time_ms - self._start)
        self.order = np.argsort(place, kind="stable")
        self._places = place[self.order]
        self.first = np.searchsorted(code[self.order], np.arange(len(self._keys) + 1))

    def between(self, key: Integers, since_ms: Integers | None, until_ms: Integers) -> Range:
        """Range [low, high) of `order`: the key's interactions in [since, until)."""
        code = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        known = self._keys[code] == key
        low = self.first[code] if since_ms is None else self._rank(code, since_ms)
        return np.where(known, low, 0), np.where(known, self._rank(code, until_ms), 0)

    def time_at(self, place: Integers) -> Integers:
        """Times, in ms, of interactions by their place in `order`."""
        return self._places[place] % self._span + self._start

    def _rank(self, code: Integers, time_ms: Integers) -> Integers:
        offset = np.clip(time_ms - self._start, 0, self._span - 1)
        return np.searchsorted(self._places, code * self._span + offset)


class PastFeatures:
    """Evaluates `PastNumber`s over one table of N >= 1 interactions, in time order.

    `keys` holds an int64 column by name (user, item_id, ...), `numbers` those that ratios read.
    """

    def __init__(
        self, time_ms: Integers, keys: Mapping[str, Integers], numbers: Mapping[str, Numbers]
    ):
        self.time_ms, self._keys, self._numbers = time_ms, keys, numbers
        self._codes = {name: np.unique(column) for name, column in keys.items()}
        self._indexes: dict[tuple[str, ...], PastIndex] = {}
        self._sums: dict[tuple[tuple[str, ...], str], tuple[Numbers, Numbers]] = {}

    def evaluate(
        self, sources: Mapping[str, PastNumber], keys: Mapping[str, Integers], time_ms: Integers
    ) -> dict[str, NDArray[Any]]:
        """float32 [rows] by name, for rows of these keys that ask at these times."""
        rows = _AskingRows(self, keys, time_ms)
        return {name: rows.answer(s).astype(np.float32) for name, s in sources.items()}

    def index(self, by: tuple[str, ...]) -> PastIndex:
        """The index by these names, made on first use."""
        if by not in self._indexes:
            self._indexes[by] = PastIndex(self.combined(by, self._keys), self.time_ms)
        return self._indexes[by]

    def total(self, by: tuple[str, ...], number: str, low: Integers, high: Integers) -> Numbers:
        """Sum of a number over ranges [low, high) of the index `by`; 0 where empty."""
        if (by, number) not in self._sums:
            index = self.index(by)
            ordered = self._numbers[number][index.order]
            # Summed key by key: in one global running sum, the rounding of one key's total would
            # depend on other keys' later rows.
            upto = np.concatenate([np.cumsum(s) for s in np.split(ordered, index.first[1:-1])])
            self._sums[by, number] = upto, upto - ordered
        upto, before = self._sums[by, number]
        some = high > low
        return np.where(some, upto[np.where(some, high - 1, 0)] - before[np.where(some, low, 0)], 0)

    def combined(self, by: tuple[str, ...], keys: Mapping[str, Integers]) -> Integers:
        """One int64 for the values of several names; -1 where no interaction has one of them."""
        key, room = np.zeros(len(keys[by[0]]), np.int64), 1
        unknown = np.zeros(len(key), bool)
        for name in by:
            codes = self._codes[name]
            code = np.minimum(np.searchsorted(codes, keys[name]), len(codes) - 1)
            unknown |= codes[code] != keys[name]
            room *= len(codes)
            if room >= 1 << 62:
                raise ValueError(f"by {list(by)}: too many combinations for 64-bit keys")
            key = key * len(codes) + code
        return np.where(unknown, -1, key)


class _AskingRows:
    """The rows that ask, and the ranges already found for them."""

    def __init__(self, past: PastFeatures, keys: Mapping[str, Integers], time_ms: Integers):
        self._past, self._keys, self._time_ms = past, keys, time_ms
        self._ranges: dict[tuple[tuple[str, ...], float | None], Range] = {}

    def answer(self, source: PastNumber) -> Numbers:
        by, days = source.by, source.days
        match source.past:
            case "count":
                return self._count(by, days)
            case "recency":
                low, high = self._range(by)
                last = self._past.index(by).time_at(np.maximum(high - 1, 0))
                return np.where(high > low, (self._time_ms - last) / DAY_MS, NEVER_DAYS)
            case "ratio":
                assert source.of is not None  # the mapping requires it
                ranges = self._range(by, days)
                above, below = (self._past.total(by, name, *ranges) for name in source.of)
                some = below > 0
                return np.where(some, above / np.where(some, below, 1), -1.0)
            case "lift":
                share = np.maximum(self._count(by[1:]), 0.5) / np.maximum(self._everything(), 1)
                drawn = (self._count(by) + PRIOR * share) / (self._count(by[:1]) + PRIOR)
                return np.asarray(drawn / share)
            case "trend":
                assert days is not None  # the mapping requires it
                elapsed = (self._time_ms - self._past.time_ms[0]) / DAY_MS
                expected = self._count(by) * days / np.maximum(elapsed, days)
                return np.asarray((self._count(by, days) + 1) / (expected + 1))

    def _count(self, by: tuple[str, ...], days: float | None = None) -> Numbers:
        low, high = self._range(by, days)
        return (high - low).astype(np.float64)

    def _everything(self) -> Numbers:
        return np.searchsorted(self._past.time_ms, self._time_ms).astype(np.float64)

    def _range(self, by: tuple[str, ...], days: float | None = None) -> Range:
        if (by, days) not in self._ranges:
            key = self._past.combined(by, self._keys)
            since = None if days is None else self._time_ms - round(days * DAY_MS)
            self._ranges[by, days] = self._past.index(by).between(key, since, self._time_ms)
        return self._ranges[by, days]
