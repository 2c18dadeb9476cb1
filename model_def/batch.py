"""One ragged token batch from features: the noun that crosses every seam, and how it is made.

`pack()` serves and trains alike, so a training sample of one request is byte-equal to the request
as served. A batch holds values and offsets, never padding, in **one** host buffer of the smallest
sufficient dtypes: the user's part and each request's context once, whatever the number of
candidates. Needs NumPy only; knows nothing of torch, HTTP or Redis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_def.schema import ArraySpec, FeatureSchema

Array = NDArray[Any]
Rows = NDArray[np.void]
"""Rows of one segment: a structured array of its `Layout.record`."""

Static = Mapping[str, Array]
"""Arrays of a user's static segment, profile and lifelong: nothing of a request is in them."""


class Events(NamedTuple):
    """A user's real-time events in order, packed: what a request sees of them is a slice."""

    times: NDArray[np.int64]
    tables: Static
    """[N, width] by array."""


ALIGNMENT = 16
"""Bytes; each array of a batch starts at a multiple, so a device may read it in wide words."""


@dataclass(frozen=True)
class PackedBatch:
    """B requests as one buffer, and named 1-D views into it (see `FeatureSchema.arrays`)."""

    buffer: NDArray[np.uint8]
    arrays: Mapping[str, Array]

    @property
    def payload_bytes(self) -> int:
        """Bytes that cross to the engine, offsets and alignment included."""
        return self.buffer.nbytes

    @property
    def requests(self) -> int:
        """B, the number of users' samples; in serving, of requests."""
        return len(self.arrays["candidate_offsets"]) - 1

    @property
    def candidates(self) -> int:
        """Candidate rows over all requests."""
        return int(self.arrays["candidate_offsets"][-1])

    @cached_property
    def candidate_context(self) -> NDArray[np.int32]:
        """int32 [T_c]: the context row of each candidate."""
        counts = self.arrays["context_candidates"]
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


@dataclass(frozen=True)
class Sample:
    """What is known of one user when ranking: one request, or a training window of several.

    `realtime` may hold any events in any order: `pack` keeps what the request may see. Row i of
    `context` carries the time of request i, whose candidates are the next
    `context_candidates[i]` rows of `candidates`; requests ascend in time.
    """

    snapshot_ms: int
    profile: Rows
    lifelong: Rows
    realtime: Rows
    context: Rows
    candidates: Rows
    context_candidates: NDArray[np.int32]


def visible_lengths(event_ms: NDArray[np.int64], row_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many leading events (sorted by time) are strictly earlier than each row's time."""
    return event_ms.searchsorted(row_ms)


def realtime_window(events: Rows, snapshot_ms: int, end_ms: int, cap: int) -> Rows:
    """Events with snapshot < t < end, sorted by (t, event id), the last `cap` of them.

    The bounds are strict: a snapshot already counts the event at its own time, and an event at
    the request's time may be its consequence. So no event counts twice, and a later event can
    never evict an earlier one.
    """
    ordered = in_order(events)
    return ordered[window(ordered["time_ms"], snapshot_ms, end_ms, cap)]


def in_order(events: Rows) -> Rows:
    """Events sorted by (t, event id)."""
    times = events["time_ms"]
    if np.logical_and.reduce(times[1:] > times[:-1]):  # as they were stored: nothing to sort
        return events
    return events[np.lexsort((events["event_id"], times))]


def window(times: NDArray[np.int64], snapshot_ms: int, end_ms: int, cap: int) -> slice:
    """Of ascending times those with snapshot < t < end, the last `cap` of them."""
    first, end = times.searchsorted((snapshot_ms + 1, end_ms)).tolist()
    return slice(max(first, end - cap), end)


def split_window(
    event_ms: NDArray[np.int64], request_ms: NDArray[np.int64], cap: int
) -> list[slice]:
    """Cut ascending requests into runs that see the same last-`cap` events, as serving would.

    `event_ms` are the events after the snapshot. Two requests may share a sample only if the
    first event that they see is the same one.
    """
    first = np.maximum(0, visible_lengths(np.sort(event_ms), request_ms) - cap)
    edges = np.flatnonzero(np.diff(first)) + 1
    bounds = [0, *edges.tolist(), len(request_ms)]
    return [slice(low, high) for low, high in pairwise(bounds) if high > low]


def pack_static(schema: FeatureSchema, snapshot_ms: int, profile: Rows, lifelong: Rows) -> Static:
    """The static segment as `pack` packs it, to be kept for the user's next requests."""
    kept = lifelong[max(0, len(lifelong) - schema.lifelong_cap) :]
    rows = {"profile": profile, "lifelong": kept}
    arrays: dict[str, Array] = {}
    for spec in schema.arrays:
        if spec.carrier and spec.rows in rows:
            table = np.empty((len(rows[spec.rows]), spec.width), spec.dtype)
            _carry(spec, rows[spec.rows], snapshot_ms, table)
            arrays[spec.name] = table.reshape(-1)
    return arrays


def pack_events(schema: FeatureSchema, snapshot_ms: int, realtime: Rows) -> Events:
    """Real-time events as `pack` packs them, to be kept for the user's next requests."""
    rows = in_order(realtime)
    tables: dict[str, Array] = {}
    for spec in schema.arrays:
        if spec.carrier and spec.rows == "realtime":
            tables[spec.name] = np.empty((len(rows), spec.width), spec.dtype)
            _carry(spec, rows, snapshot_ms, tables[spec.name])
    return Events(np.ascontiguousarray(rows["time_ms"]), tables)


def pack(
    schema: FeatureSchema,
    sample: Sample,
    static: Static | None = None,
    events: Events | None = None,
) -> PackedBatch:
    """Pack one user's sample; `merge` joins several. Source: paper section 4.1, Eq. 3.

    `static` and `events` are `pack_static` and `pack_events` of it, where there are some already.
    """
    snapshot_ms, request_ms = sample.snapshot_ms, sample.context["time_ms"]
    if static is None:
        static = pack_static(schema, snapshot_ms, sample.profile, sample.lifelong)
    if events is None:
        events = pack_events(schema, snapshot_ms, sample.realtime)
    seen = window(events.times, snapshot_ms, int(request_ms[-1]), schema.realtime_cap)
    event_ms = events.times[seen]
    candidate_visible = visible_lengths(event_ms, request_ms)
    if len(request_ms) > 1:
        candidate_visible = np.repeat(candidate_visible, sample.context_candidates)
    ready = {
        **static,
        **{name: table[seen].reshape(-1) for name, table in events.tables.items()},
        "rt_visible": visible_lengths(event_ms, event_ms),
        "candidate_visible": candidate_visible,
        "context_candidates": sample.context_candidates,
    }
    rows = {"context": sample.context, "candidate": sample.candidates}
    counts = {name: len(of_segment) for name, of_segment in rows.items()}
    counts["realtime"] = len(event_ms)
    counts["profile"] = len(sample.profile)
    counts["lifelong"] = min(len(sample.lifelong), schema.lifelong_cap)
    ends = {
        "lifelong_offsets": counts["lifelong"],
        "rt_offsets": counts["realtime"],
        "candidate_offsets": counts["candidate"],
    }
    counts["offset"] = 2
    specs = schema.arrays
    batch = _allocate(specs, [counts[spec.rows] * spec.width for spec in specs])
    for spec in specs:
        out, values = batch.arrays[spec.name], ready.get(spec.name)
        if values is not None:
            out[:] = values
        elif spec.carrier:
            source = rows[spec.rows]
            _carry(spec, source, snapshot_ms, out.reshape(len(source), spec.width))
        else:
            out[1] = ends[spec.name]
    return batch


def _carry(spec: ArraySpec, source: Rows, snapshot_ms: int, table: Array) -> None:
    """Write a carrier's features of `source` into `table`, and its times where it has them."""
    features = source[spec.carrier]
    if features.shape[1] == spec.width:
        table[:] = features
        return
    table[:, :-1] = features
    seconds = np.abs(source["time_ms"] - snapshot_ms) / 1000.0
    table[:, -1] = np.log1p(seconds)


def merge(batches: Sequence[PackedBatch], schema: FeatureSchema) -> PackedBatch:
    """Join batches into one ragged batch, in order; scores are those of each alone."""
    if len(batches) == 1:
        return batches[0]
    specs = schema.arrays
    values = {spec.name: [b.arrays[spec.name] for b in batches] for spec in specs}
    for spec in specs:
        if spec.rows == "offset":
            counts = [np.diff(offsets) for offsets in values[spec.name]]
            values[spec.name] = [np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))]
    lengths = [sum(map(len, values[spec.name])) for spec in specs]
    merged = _allocate(specs, lengths)
    for spec in specs:
        np.concatenate(values[spec.name], out=merged.arrays[spec.name], casting="same_kind")
    return merged


def from_arrays(schema: FeatureSchema, arrays: Mapping[str, Array]) -> PackedBatch:
    """The batch of the schema's named arrays, copied into one buffer: off a disk or a wire."""
    specs = schema.arrays
    batch = _allocate(specs, [len(arrays[spec.name]) for spec in specs])
    for spec in specs:
        batch.arrays[spec.name][:] = arrays[spec.name]
    return batch


def from_buffer(
    schema: FeatureSchema, rows: Mapping[str, int], buffer: NDArray[np.uint8]
) -> PackedBatch:
    """The batch whose buffer this is, nothing copied. `rows` counts those of each segment, and of
    "offset" the elements of each offsets array. Raises ValueError for a buffer of another size."""
    specs = schema.arrays
    lengths = [rows[spec.rows] * spec.width for spec in specs]
    *starts, end = _places(specs, lengths)
    if len(buffer) != end:
        raise ValueError(f"{len(buffer)} bytes; expected {end}")
    return _views(specs, lengths, starts, buffer)


def _allocate(specs: tuple[ArraySpec, ...], lengths: list[int]) -> PackedBatch:
    *starts, end = _places(specs, lengths)
    return _views(specs, lengths, starts, np.zeros(end, np.uint8))


def _places(specs: tuple[ArraySpec, ...], lengths: list[int]) -> list[int]:
    """Where each array of that many elements starts in the buffer, and where the last one ends."""
    places = [0]
    for spec, length in zip(specs, lengths, strict=True):
        places.append(places[-1] - -length * spec.dtype.itemsize // ALIGNMENT * ALIGNMENT)
    return places


def _views(
    specs: tuple[ArraySpec, ...],
    lengths: list[int],
    starts: list[int],
    buffer: NDArray[np.uint8],
) -> PackedBatch:
    arrays: dict[str, Array] = {
        spec.name: np.frombuffer(buffer, spec.dtype, length, start)
        for spec, length, start in zip(specs, lengths, starts, strict=True)
    }
    return PackedBatch(buffer, arrays)
