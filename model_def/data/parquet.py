"""Training logs as Parquet files; `model_def.data.logs` documents the format.

Rows that cannot be used are set aside with their reason and the others are kept; a file that
cannot be read at all, or lacks a column, is a LogError.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_def.batch import Rows
from model_def.data.logs import UNLABELLED, Events, LogError, Logs, Requests, Snapshots
from model_def.data.rejects import Rejects
from model_def.data.table import Table
from model_def.rows import columns_from_rows, rows_from_columns
from model_def.schema import FeatureSchema, Layout

SNAPSHOTS, EVENTS, EXPOSURES = "snapshots.parquet", "events.parquet", "exposures.parquet"


class LogWriter:
    """Writes a log directory in parts; it becomes readable when the writer closes.

    >>> with LogWriter(Path("logs"), schema) as writer:
    ...     writer.write(snapshots)
    ...     writer.write(requests)

    With `part`, a name, the three tables are directories of files and this adds one to each.
    """

    def __init__(self, directory: Path, schema: FeatureSchema, part: str = ""):
        self._directory, self._schema, self._part = directory, schema, part
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._part:
            (self._directory / "schema.json").unlink(missing_ok=True)
        for empty in _empty(self._schema):  # so that every file exists
            self.write(empty)
        return self

    def write(self, part: Snapshots | Events | Requests) -> None:
        """Append `part` to its file."""
        if isinstance(part, Snapshots):
            file, columns = SNAPSHOTS, _snapshot_columns(self._schema, part)
        elif isinstance(part, Events):
            file, columns = EVENTS, _event_columns(self._schema, part)
        else:
            file, columns = EXPOSURES, _exposure_columns(self._schema, part)
        table = pa.table(columns)
        if file not in self._writers:
            path = self._path(file)
            path.parent.mkdir(exist_ok=True)
            partial = path.with_name(f"{path.name}.partial")
            self._writers[file] = pq.ParquetWriter(partial, table.schema, compression="zstd")
        self._writers[file].write_table(table)

    def _path(self, file: str) -> Path:
        if not self._part:
            return self._directory / file
        return self._directory / file / f"{self._part}.parquet"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()
        if error is not None:
            return
        for file in sorted(self._writers, key=(SNAPSHOTS, EVENTS, EXPOSURES).index):
            path = self._path(file)
            path.with_name(f"{path.name}.partial").replace(path)
        (self._directory / "schema.json").write_text(self._schema.model_dump_json(indent=1) + "\n")


def write_logs(directory: Path, logs: Logs) -> None:
    """Write whole logs at once."""
    with LogWriter(directory, logs.schema) as writer:
        writer.write(logs.snapshots)
        writer.write(logs.events)
        writer.write(logs.requests)


def read_schema(directory: Path) -> FeatureSchema:
    """The schema of a log directory; LogError when there is none or it is invalid."""
    path = directory / "schema.json"
    if not path.is_file():
        raise LogError(f"{path}: not found; expected a directory that holds training logs")
    try:
        return FeatureSchema.model_validate_json(path.read_text())
    except ValueError as error:
        raise LogError(f"{path}: {error}") from error


def read_logs(directory: Path, schema: FeatureSchema | None = None) -> tuple[Logs, Rejects]:
    """Read a log directory; `schema`, a subset of its own, leaves features out of what is read."""
    schema = schema or read_schema(directory)
    rejects = Rejects()
    snapshots = _read_snapshots(Table(directory / SNAPSHOTS, rejects), schema)
    events = _read_events(Table(directory / EVENTS, rejects), schema)
    requests = _read_requests(Table(directory / EXPOSURES, rejects), schema, snapshots)
    return Logs(schema, snapshots, events, requests), rejects


def _read_snapshots(table: Table, schema: FeatureSchema) -> Snapshots:
    layout = schema.layouts["lifelong"]
    user, users = table.strings("user_id")
    at = table.times("snapshot_ms")
    profile = table.features("profile.", schema.profile)
    owner, lifelong = table.lists("lifelong.", layout.features)
    times = lifelong.pop("time_ms")
    back = np.flatnonzero((np.diff(times) < 0) & (np.diff(owner) == 0))
    table.reject(owner[back], "lifelong.time_ms: expected ascending times")
    table.reject(owner[times > at[owner]], "lifelong.time_ms: later than snapshot_ms")
    table.reject_repeats("repeats a (user_id, snapshot_ms)", user, at)
    rows = np.flatnonzero(table.good)
    elements = np.flatnonzero(table.good[owner])
    return Snapshots(
        users[user[rows]],
        at[rows],
        _rows(schema.layouts["profile"], profile, rows),
        _rows(layout, lifelong, elements, {"time_ms": times}),
        np.bincount(owner, minlength=len(table))[rows].astype(np.int32),
    )


def _read_events(table: Table, schema: FeatureSchema) -> Events:
    layout = schema.layouts["realtime"]
    user, users = table.strings("user_id")
    stamps = {"event_id": table.integers("event_id"), "time_ms": table.times("time_ms")}
    columns = table.features("", layout.features)
    table.reject_repeats("repeats a (user_id, event_id)", user, stamps["event_id"])
    rows = np.flatnonzero(table.good)
    return Events(users[user[rows]], _rows(layout, columns, rows, stamps))


def _read_requests(table: Table, schema: FeatureSchema, snapshots: Snapshots) -> Requests:
    request, requests = table.strings("request_id")
    user, users = table.strings("user_id")
    scene, scenes = table.strings("scene")
    history, histories = table.strings_or("history", user, users)
    at = table.times("time_ms")
    context = table.features("context.", schema.context)
    candidate = table.features("candidate.", schema.candidate)
    click, order = table.labels("click"), table.labels("order")
    table.reject(np.flatnonzero((click == 0) & (order == 1)), "order without a click")
    table.reject_repeats("repeats an item_id in its request", request, candidate["item_id"])
    known = _first_snapshots(snapshots, histories)[history]
    table.reject(np.flatnonzero(at < known), "before the user's first snapshot")

    kept = np.flatnonzero(table.good)
    codes, first = np.unique(request[kept], return_index=True)
    head = np.zeros(len(requests), np.int64)
    head[codes] = kept[first]  # the first good row of each request
    alike = {"user_id": user, "scene": scene, "history": history, "time_ms": at}
    alike |= {f"context.{name}": values for name, values in context.items()}
    for name, values in alike.items():
        odd = values[kept] != values[head[request[kept]]]
        table.reject(kept[odd], f"{name}: differs within its request")

    kept = np.flatnonzero(table.good)
    kept = kept[np.argsort(request[kept], kind="stable")]
    codes, first, counts = np.unique(request[kept], return_index=True, return_counts=True)
    rows = kept[first]
    return Requests(
        requests[codes],
        users[user[rows]],
        scenes[scene[rows]],
        _rows(schema.layouts["context"], context, rows, {"time_ms": at}),
        _rows(schema.layouts["candidate"], candidate, kept),
        counts.astype(np.int32),
        click[kept],
        order[kept],
        histories[history[rows]],
    )


def _first_snapshots(snapshots: Snapshots, users: NDArray[np.str_]) -> NDArray[np.int64]:
    """int64 [len(users)]: each user's first snapshot time, beyond all times if there is none."""
    first: dict[str, int] = {}
    for user, at in zip(snapshots.user_id.tolist(), snapshots.snapshot_ms.tolist(), strict=True):
        first[user] = min(at, first.get(user, at))
    never = np.iinfo(np.int64).max
    return np.array([first.get(user, never) for user in users.tolist()], np.int64)


def _rows(
    layout: Layout,
    columns: Mapping[str, NDArray[Any]],
    rows: NDArray[np.int64],
    stamps: Mapping[str, NDArray[np.int64]] = MappingProxyType({}),
) -> Rows:
    return rows_from_columns(
        layout,
        {name: values[rows] for name, values in columns.items()},
        len(rows),
        {name: values[rows] for name, values in stamps.items()},
    )


def _empty(schema: FeatureSchema) -> tuple[Snapshots, Events, Requests]:
    rows = {segment: np.zeros(0, layout.record) for segment, layout in schema.layouts.items()}
    text, time = np.zeros(0, np.str_), np.zeros(0, np.int64)
    count, label = np.zeros(0, np.int32), np.zeros(0, np.int8)
    return (
        Snapshots(text, time, rows["profile"], rows["lifelong"], count),
        Events(text, rows["realtime"]),
        Requests(text, text, text, rows["context"], rows["candidate"], count, label, label),
    )


def _snapshot_columns(schema: FeatureSchema, part: Snapshots) -> dict[str, Any]:
    layout = schema.layouts["lifelong"]
    offsets = np.concatenate([[0], np.cumsum(part.lifelong_counts)])
    lists = {"time_ms": part.lifelong["time_ms"], **_features("", layout, part.lifelong)}
    return {
        "user_id": pa.array(part.user_id.tolist(), pa.string()),
        "snapshot_ms": part.snapshot_ms,
        **_features("profile.", schema.layouts["profile"], part.profile),
        **{
            f"lifelong.{name}": pa.LargeListArray.from_arrays(offsets, pa.array(values))
            for name, values in lists.items()
        },
    }


def _event_columns(schema: FeatureSchema, part: Events) -> dict[str, Any]:
    return {
        "user_id": pa.array(part.user_id.tolist(), pa.string()),
        "event_id": part.rows["event_id"],
        "time_ms": part.rows["time_ms"],
        **_features("", schema.layouts["realtime"], part.rows),
    }


def _exposure_columns(schema: FeatureSchema, part: Requests) -> dict[str, Any]:
    owner = np.repeat(np.arange(len(part.request_id)), part.candidate_counts)
    context = part.context[owner]
    texts = {"request_id": part.request_id, "user_id": part.user_id, "scene": part.scene}
    return {
        **{
            name: pa.array(values.tolist(), pa.string()).take(pa.array(owner))
            for name, values in texts.items()
        },
        "time_ms": context["time_ms"],
        **_features("context.", schema.layouts["context"], context),
        **_features("candidate.", schema.layouts["candidate"], part.candidates),
        "click": pa.array(part.click, mask=part.click == UNLABELLED),
        "order": pa.array(part.order, mask=part.order == UNLABELLED),
        "history": pa.array(
            part.history.tolist(), pa.string(), mask=part.history == part.user_id
        ).take(pa.array(owner)),
    }


def _features(prefix: str, layout: Layout, rows: Rows) -> dict[str, NDArray[Any]]:
    """Columns of `rows` in the types that other tools expect: int64, int32, float32."""
    types = {"ids": np.int64, "categories": np.int32, "numbers": np.float32}
    carrier = {f.name: name for name, features in layout.carriers.items() for f in features}
    return {
        prefix + name: np.ascontiguousarray(values, types[carrier[name]])
        for name, values in columns_from_rows(layout, rows).items()
    }
