"""A user's stored values as rows: what stands for an unreadable part, and what is known already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_

from model_def.batch import Events, Rows, Static, pack_events, pack_static
from model_def.rows import empty_rows
from model_def.schema import FeatureSchema
from service.features.codec import LogCodec, TableCodec, Unreadable

PARTS = {"profile": "profile", "lifelong": "static", "realtime": "rt"}
"""Of a user's features, each with its part of a key."""

Values = Sequence[bytes | None]


@dataclass(frozen=True)
class Part:
    """A stored value and what it was found to hold."""

    value: bytes | None
    snapshot_ms: int | None
    rows: Rows
    reason: str | None
    """Why not all of it could be had."""


@dataclass(frozen=True)
class StoredUser:
    """What is stored of a user, decoded: defaults and empty sequences for what is missing."""

    stored_ms: int | None
    """When the snapshot was taken; None without one."""
    event_ms: int | None
    """The last real-time event; None without one."""
    snapshot_ms: int | None
    """What behaviour is counted from: when the snapshot was taken, or without one just before the
    first event; None where there is neither."""
    profile: Rows
    lifelong: Rows
    realtime: Rows
    missing: Mapping[str, str]
    """Reason by part."""
    parts: Sequence[Part]
    """All of it, as stored."""
    static: Static
    """Profile and lifelong sequence, packed."""
    events: Events
    """The real-time sequence, packed."""
    size: int
    """Bytes of what is stored and of what is packed; 0 where nothing is stored."""


class UserCodec:
    """The values of PARTS, of one schema."""

    def __init__(self, schema: FeatureSchema):
        self._schema, layouts, layout_hash = schema, schema.layouts, schema.layout_hash
        self.profile = TableCodec(layouts["profile"], layout_hash)
        self.lifelong = TableCodec(layouts["lifelong"], layout_hash)
        self.realtime = LogCodec(layouts["realtime"], layout_hash)
        self._no_profile = empty_rows(layouts["profile"], 1)
        self._no_lifelong = empty_rows(layouts["lifelong"])
        self.stranger = self.decode([None] * len(PARTS))

    def decode(self, values: Values, before: StoredUser | None = None) -> StoredUser:
        """A user; values that are what they were `before` are neither checked nor packed again."""
        if before is None:
            parts = [self._part(name, value) for name, value in zip(PARTS, values, strict=True)]
        else:
            parts = [
                part if part.value == value else self._part(name, value)
                for name, value, part in zip(PARTS, values, before.parts, strict=True)
            ]
            if all(map(is_, parts, before.parts)):
                return before
        profile, lifelong, realtime = parts
        times = [part.snapshot_ms for part in parts if part.snapshot_ms is not None]
        stored_ms = max(times, default=None)
        if before is not None and all(map(is_, parts[:2], before.parts)):
            static = before.static
        else:
            # Without a snapshot there is no behaviour of which the time could matter.
            static = pack_static(self._schema, stored_ms or 0, profile.rows, lifelong.rows)
        event_ms, snapshot_ms = realtime.rows["time_ms"], stored_ms
        if snapshot_ms is None and len(event_ms):
            snapshot_ms = int(event_ms.min()) - 1
        events = pack_events(self._schema, snapshot_ms or 0, realtime.rows)
        packed = (*static.values(), events.times, *events.tables.values())
        size = sum(len(value) for value in values if value)
        return StoredUser(
            stored_ms=stored_ms,
            event_ms=int(event_ms.max()) if len(event_ms) else None,
            snapshot_ms=snapshot_ms,
            profile=profile.rows,
            lifelong=lifelong.rows,
            realtime=realtime.rows,
            missing={n: part.reason for n, part in zip(PARTS, parts, strict=True) if part.reason},
            parts=parts,
            static=static,
            events=events,
            size=size and size + sum(array.nbytes for array in packed),
        )

    def _part(self, name: str, value: bytes | None) -> Part:
        if name == "realtime":
            rows, damage = self.realtime.decode(value)
            return Part(value, None, rows, damage)
        table, none = (
            (self.profile, self._no_profile)
            if name == "profile"
            else (self.lifelong, self._no_lifelong)
        )
        try:
            snapshot_ms, rows = table.decode(value)
        except Unreadable as unreadable:
            return Part(value, None, none, unreadable.reason)
        return Part(value, snapshot_ms, rows, None)
