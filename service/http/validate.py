"""Decoded bodies -> requests that need no further check, or InvalidRequest with a path.

Whatever needs the schema's ranges, several fields or the clock is decided here, on whole columns.
"""

from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any

import numpy as np
from msgspec import UNSET
from msgspec.structs import asdict, astuple
from numpy.typing import NDArray

from model_def.batch import Rows
from model_def.schema import FeatureSchema
from service.errors import InvalidRequest
from service.http.refusals import check_range, check_time
from service.http.table import Table, checked_rows, single_row
from service.ranking import RankRequest
from service.settings import Settings

LONGEST_LIFELONG = 16384
"""Rows of a lifelong sequence in one body; the store keeps the last `lifelong_cap` of them."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most."""

    max_candidates: int
    max_events: int
    clock_skew_ms: int
    """How far ahead of our clock a caller's may be."""
    default_deadline_ms: int
    max_deadline_ms: int

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """As the settings say."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


def rank_request(
    body: Any, schema: FeatureSchema, limits: Limits, now_ms: int, request_id: str, top_k: int
) -> RankRequest:
    """`POST /v1/rank`. `request_id` and `top_k` are for a body that gives none."""
    time_ms = now_ms if body.timestamp is None else body.timestamp
    check_time(time_ms, "$.timestamp", now_ms + limits.clock_skew_ms)
    if body.top_k is not None:
        top_k = body.top_k
        check_range(top_k, "$.top_k", 1, limits.max_candidates)
    table = Table.of(body.candidates, "$.candidates", "item_id", 1, limits.max_candidates)
    item_ids = table.item_ids()
    absent, filled = _absent(table, schema)
    return RankRequest(
        request_id=request_id if body.request_id is None else body.request_id,
        user_id=body.user_id,
        time_ms=time_ms,
        top_k=top_k,
        item_ids=item_ids,
        candidates=table.rows(schema.layouts["candidate"], {**filled, "item_id": item_ids}),
        context=single_row(schema.layouts["context"], body.context, "$.context", time_ms),
        recall_scores=table.recall_scores(),
        absent=absent,
    )


def deadline_ms(body: Any, limits: Limits) -> int:
    """The caller's patience, or the default, in milliseconds."""
    if body.deadline_ms is None:
        return limits.default_deadline_ms
    check_range(body.deadline_ms, "$.deadline_ms", 1, limits.max_deadline_ms)
    return int(body.deadline_ms)


def user_snapshot(
    body: Any, schema: FeatureSchema, limits: Limits, now_ms: int
) -> tuple[int, Rows, Rows]:
    """`PUT /v1/users/{id}`: snapshot time, profile row, lifelong rows in time order."""
    check_time(body.snapshot_ms, "$.snapshot_ms", now_ms + limits.clock_skew_ms)
    profile = single_row(schema.layouts["profile"], body.profile, "$.profile")
    table = Table.of(body.lifelong, "$.lifelong", "timestamp", 0, LONGEST_LIFELONG)
    times = table.stamp("timestamp")
    bounds = np.concatenate([[0], times[:-1]])
    for row in np.flatnonzero((times < bounds) | (times > body.snapshot_ms))[:1].tolist():
        raise InvalidRequest(
            f"got {times[row]}",
            path=table.path("timestamp", row),
            expected=f"times that never decrease, from 0 to the snapshot's {body.snapshot_ms}",
        )
    lifelong = table.rows(schema.layouts["lifelong"], {}, {"time_ms": times})
    return body.snapshot_ms, profile, lifelong


def behaviour(
    body: Any, schema: FeatureSchema, limits: Limits, now_ms: int
) -> tuple[Rows, list[dict[str, Any]]]:
    """`POST /v1/events`: real-time rows to append, and labels to write."""
    check_range(len(body.events), "$.events", 1, limits.max_events, "events")
    for i, event in enumerate(body.events):
        check_time(event.timestamp, f"$.events[{i}].timestamp", now_ms + limits.clock_skew_ms)
        if event.features is None and event.label is None:
            raise InvalidRequest(
                "says nothing", path=f"$.events[{i}]", expected="features, a label, or both"
            )
    seen = [i for i, event in enumerate(body.events) if event.features is not None]
    events = [body.events[i] for i in seen]
    names = [feature.name for feature in schema.behaviour]
    values = [astuple(event.features) for event in events]
    columns = dict(zip(names, zip(*values, strict=True), strict=True)) if values else {}
    stamps = {
        "event_id": [event_hash(event.event_id) for event in events],
        "time_ms": [event.timestamp for event in events],
    }
    layout = schema.layouts["realtime"]

    def path(name: str, row: int | None) -> str:
        return f"$.events[{'*' if row is None else seen[row]}].features.{name}"

    if events:
        rows = checked_rows(layout, columns, len(events), stamps, path)
    else:
        rows = np.zeros(0, layout.record)
    labels = [
        {"event_id": e.event_id, "user_id": body.user_id, "time_ms": e.timestamp} | asdict(e.label)
        for e in body.events
        if e.label is not None
    ]
    return rows, labels


def event_hash(event_id: str) -> int:
    """A caller's event id as int64: 8 bytes of BLAKE2b; 0 is reserved."""
    digest = blake2b(event_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def _absent(
    table: Table, schema: FeatureSchema
) -> tuple[dict[str, NDArray[np.bool_]], dict[str, Any]]:
    """Item features left out: their rows, and columns with a default in those places."""
    absent: dict[str, NDArray[np.bool_]] = {}
    filled: dict[str, Any] = {}
    for feature in schema.item:
        if feature.name == "item_id":
            continue
        default = feature.default or 0
        if feature.name not in table.features:
            absent[feature.name] = np.ones(table.count, np.bool_)
            filled[feature.name] = np.full(table.count, default)
            continue
        column = table.features[feature.name]
        values = np.asarray(column)
        if values.dtype == object and UNSET in column:
            absent[feature.name] = np.array([value is UNSET for value in column])
            values = np.array([default if value is UNSET else value for value in column])
        filled[feature.name] = values
    return absent, filled
