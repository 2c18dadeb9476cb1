"""One served request, whole: what it was ranked on, and how. The row of the request log.

The gateway writes it (`service.request_log`), `mtgr join` makes training logs of it. On disk, a
directory a schema, holding files `requests-<UTC time>-<process>-<number>.parquet` whose key-value
metadata `mtgr.schema` is the FeatureSchema as JSON:

    request_id, user_id, scene, model_version   string
    time_ms, snapshot_ms    int64, of the request and of the user's features
    ranked_by               string, `model` or the rung that ranked instead of it
    reason                  string, why the answer was degraded; null when it was not
    profile, context        binary, one row of the layout of that name
    lifelong, realtime      binary, the rows that `pack` kept
    candidates              binary, every candidate with its features as they were seen
    answered                list<int32>, positions of the answered candidates, best first
    score                   list<float>, of every candidate
    ctr, ctcvr              list<float>, of every candidate; null unless the model ranked

Rows are the bytes of `Layout.record`: what was packed, exactly, for a copy's price. Needs NumPy
only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_def.batch import Rows, Sample, realtime_window
from model_def.schema import FeatureSchema

SCHEMA_KEY = b"mtgr.schema"
PREFIX = "requests-"
TASKS = ("ctr", "ctcvr")
SEGMENTS = {
    "profile": "profile",
    "lifelong": "lifelong",
    "realtime": "realtime",
    "context": "context",
    "candidates": "candidate",
}
"""Layout of each of a sample's parts."""


@dataclass(frozen=True)
class ServedRequest:
    """A request of K candidates as it was answered."""

    request_id: str
    user_id: str
    scene: str
    model_version: str
    sample: Sample
    ranked_by: str
    reason: str | None
    answered: NDArray[np.integer]
    """Positions of the answered candidates, best first."""
    scores: NDArray[np.floating]
    """[K]; NaN where nothing was known of a candidate."""
    tasks: Mapping[str, NDArray[np.floating]]
    """Probability [K] by task; empty unless the model ranked."""

    @property
    def time_ms(self) -> int:
        """Of the request, ms since 1970."""
        return int(self.sample.context["time_ms"][0])


def to_record(schema: FeatureSchema, served: ServedRequest) -> dict[str, Any]:
    """The request as a row of the log; only what `pack` reads of the sequences."""
    sample, time_ms = served.sample, served.time_ms
    rows = {part: getattr(sample, part) for part in SEGMENTS}
    rows["lifelong"] = sample.lifelong[max(0, len(sample.lifelong) - schema.lifelong_cap) :]
    rows["realtime"] = realtime_window(
        sample.realtime, sample.snapshot_ms, time_ms, schema.realtime_cap
    )
    tasks = {task: served.tasks.get(task) for task in TASKS}
    return {
        "request_id": served.request_id,
        "user_id": served.user_id,
        "scene": served.scene,
        "model_version": served.model_version,
        "time_ms": time_ms,
        "snapshot_ms": sample.snapshot_ms,
        "ranked_by": served.ranked_by,
        "reason": served.reason,
        **{part: values.tobytes() for part, values in rows.items()},
        "answered": np.asarray(served.answered, np.int32),
        "score": np.asarray(served.scores, np.float32),
        **{t: None if v is None else np.asarray(v, np.float32) for t, v in tasks.items()},
    }


def from_record(schema: FeatureSchema, record: Mapping[str, Any]) -> ServedRequest:
    """The request of a row; raises ValueError naming the column that cannot be one."""
    rows = {part: _rows(schema, part, record[part]) for part in SEGMENTS}
    count = len(rows["candidates"])
    for part in ("profile", "context"):
        if len(rows[part]) != 1:
            raise ValueError(f"{part}: expected one row, got {len(rows[part])}")
    if rows["context"]["time_ms"][0] != record["time_ms"]:
        raise ValueError("time_ms: is not the context's")
    scores = _numbers("score", record["score"], count)
    tasks = {t: _numbers(t, record[t], count) for t in TASKS if record[t] is not None}
    answered = np.asarray(record["answered"], np.int64)
    if len(answered) and not (answered.min() >= 0 and answered.max() < count):
        raise ValueError(f"answered: expected positions of {count} candidates")
    return ServedRequest(
        request_id=record["request_id"],
        user_id=record["user_id"],
        scene=record["scene"],
        model_version=record["model_version"],
        sample=Sample(
            snapshot_ms=record["snapshot_ms"],
            context_candidates=np.array([count], np.int32),
            **rows,
        ),
        ranked_by=record["ranked_by"],
        reason=record["reason"],
        answered=answered,
        scores=scores,
        tasks=tasks,
    )


def _rows(schema: FeatureSchema, part: str, value: bytes) -> Rows:
    record = schema.layouts[SEGMENTS[part]].record
    if len(value) % record.itemsize:
        raise ValueError(f"{part}: {len(value)} bytes are no rows of {record.itemsize}")
    return np.frombuffer(value, record)


def _numbers(name: str, values: Any, count: int) -> NDArray[np.float32]:
    numbers = np.asarray(values, np.float32)
    if len(numbers) != count:
        raise ValueError(f"{name}: {len(numbers)} values for {count} candidates")
    return numbers
