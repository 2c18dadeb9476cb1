"""A user's stored values as rows: what stands for an unreadable part, and what is known already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_def.batch import Rows
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
    profile: Rows
    lifelong: Rows
    realtime: Rows
    missing: Mapping[str, str]
    """Reason by part."""
    parts: Sequence[Part] = ()
    """All of it, as stored."""


class UserCodec:
    """The values of PARTS, of one schema."""

    def __init__(self, schema: FeatureSchema):
        layouts, layout_hash = schema.layouts, schema.layout_hash
        self.profile = TableCodec(layouts["profile"], layout_hash)
        self.lifelong = TableCodec(layouts["lifelong"], layout_hash)
        self.realtime = LogCodec(layouts["realtime"], layout_hash)
        self._no_profile = empty_rows(layouts["profile"], 1)
        self._no_lifelong = empty_rows(layouts["lifelong"])
        self.stranger = self.decode([None] * len(PARTS))

    def decode(self, values: Values, before: StoredUser | None = None) -> StoredUser:
        """A user; values that are what they were `before` need not be checked again."""
        known = {} if before is None else dict(zip(PARTS, before.parts, strict=True))
        parts = [
            part if (part := known.get(name)) and part.value == value else self._part(name, value)
            for name, value in zip(PARTS, values, strict=True)
        ]
        profile, lifelong, realtime = parts
        times = [part.snapshot_ms for part in parts if part.snapshot_ms is not None]
        return StoredUser(
            stored_ms=max(times, default=None),
            profile=profile.rows,
            lifelong=lifelong.rows,
            realtime=realtime.rows,
            missing={n: part.reason for n, part in zip(PARTS, parts, strict=True) if part.reason},
            parts=parts,
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
