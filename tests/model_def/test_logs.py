"""Training logs on disk: what is written is read, and what cannot be used is set aside."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from model_def.data.logs import LogError, Logs
from model_def.data.parquet import LogWriter, read_logs, write_logs
from model_def.schema import FeatureSchema
from tests.model_def.log_examples import SCHEMA, logs, random_logs

Edit = Callable[[list[dict[str, Any]]], None]


def same(left: Logs, right: Logs) -> bool:
    """Whether two logs hold the same arrays."""
    return left.schema == right.schema and all(
        np.array_equal(getattr(getattr(left, part), f.name), getattr(getattr(right, part), f.name))
        for part in ("snapshots", "events", "requests")
        for f in fields(getattr(left, part))
    )


def edit(path: Path, change: Edit) -> None:
    """Rewrite a Parquet file after changing its rows in place."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@given(log=logs)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, log: Logs) -> None:
    """Logs read back equal those written, for any users, requests and events, none included."""
    directory = tmp_path_factory.mktemp("logs")
    write_logs(directory, log)
    read, rejects = read_logs(directory)
    assert same(read, log)
    assert len(rejects) == 0


def test_parts_join(tmp_path: Path) -> None:
    """Logs written in parts equal the same logs written whole."""
    log = random_logs(1)
    half = log.events.rows[:10], log.events.rows[10:]
    with LogWriter(tmp_path, SCHEMA) as writer:
        writer.write(type(log.events)(log.events.user_id[:10], half[0]))
        writer.write(log.snapshots)
        writer.write(log.requests)
        writer.write(type(log.events)(log.events.user_id[10:], half[1]))
    assert same(read_logs(tmp_path)[0], log)


def test_failed_writer_leaves_no_log(tmp_path: Path) -> None:
    """A directory whose writer failed half-way is not taken for a log."""
    with pytest.raises(AttributeError), LogWriter(tmp_path, SCHEMA) as writer:
        writer.write(None)  # type: ignore[arg-type]  # the failure
    with pytest.raises(LogError, match=r"schema\.json: not found"):
        read_logs(tmp_path)


BAD_ROWS = [
    ("exposures", {"click": 2}, "click: expected 0 or 1"),
    ("exposures", {"click": 0, "order": 1}, "order without a click"),
    ("exposures", {"user_id": None}, "user_id: null"),
    ("exposures", {"time_ms": -1}, "time_ms: negative"),
    ("exposures", {"time_ms": 77}, "time_ms: differs within its request"),
    ("exposures", {"user_id": "stranger"}, "before the user's first snapshot"),
    ("exposures", {"context.hour": 24}, "context.hour: expected 0 <= value < 24"),
    ("exposures", {"candidate.distance": float("nan")}, "expected a finite float32"),
    ("exposures", {"candidate.distance": None}, "candidate.distance: null"),
    ("exposures", {"candidate.item_id": 1000}, "repeats an item_id in its request"),
    ("events", {"event_id": 1000}, "repeats a (user_id, event_id)"),
    ("events", {"action": -1}, "action: expected 0 <= value < 3"),
    ("snapshots", {"profile.age": 8}, "profile.age: expected 0 <= value < 8"),
    ("snapshots", {"snapshot_ms": 0}, "repeats a (user_id, snapshot_ms)"),
    ("snapshots", {"lifelong.time_ms": [0, 1001]}, "lifelong.time_ms: later than snapshot_ms"),
    ("snapshots", {"lifelong.time_ms": [9, 5]}, "lifelong.time_ms: expected ascending times"),
    ("snapshots", {"lifelong.item_id": [1, 2, 3]}, "lifelong.*: lists of different lengths"),
    ("snapshots", {"lifelong.action": [0, 9]}, "lifelong.action: expected 0 <= value < 3"),
    ("snapshots", {"lifelong.action": [0, None]}, "lifelong.action: null"),
]


@pytest.mark.parametrize(("file", "values", "reason"), BAD_ROWS)
def test_bad_row_is_set_aside(
    tmp_path: Path, file: str, values: dict[str, Any], reason: str
) -> None:
    """One bad row is rejected with its file, row and reason, and every other row is kept."""
    write_logs(tmp_path, random_logs(3, users=1, requests=6))

    def spoil(rows: list[dict[str, Any]]) -> None:
        rows[0] |= {"event_id": 1000} if file == "events" else {}
        if file == "exposures":  # rows 0 and 1 are one request, and 1000 is its first item
            rows[1] |= {key: rows[0][key] for key in ("request_id", "scene", "time_ms")}
            rows[1]["context.hour"] = rows[0]["context.hour"]
            rows[0]["candidate.item_id"] = 1000
        if file == "snapshots":
            for row in rows:
                row |= {"lifelong.time_ms": [0, 0], "lifelong.item_id": [1, 2]}
                row["lifelong.action"] = [0, 1]
        rows[1] |= values

    edit(tmp_path / f"{file}.parquet", spoil)
    log, rejects = read_logs(tmp_path)
    rejects.write(tmp_path / "rejects.csv")
    listed = (tmp_path / "rejects.csv").read_text().splitlines()
    assert listed[0] == "file,row,reason"
    assert len(rejects) == 1
    assert len(listed) == 2
    assert listed[1].startswith(f"{file}.parquet,1,")
    assert reason in listed[1]
    total = pq.read_metadata(tmp_path / f"{file}.parquet").num_rows
    kept = {
        "exposures": len(log.requests.candidates),
        "events": len(log.events.rows),
        "snapshots": len(log.snapshots.profile),
    }
    assert kept[file] == total - 1


def test_interleaved_requests_are_grouped(tmp_path: Path) -> None:
    """Rows of one request need not be neighbours; its candidates keep their order."""
    log = random_logs(5)
    write_logs(tmp_path, log)
    order = np.argsort(np.random.default_rng(0).random(len(log.requests.candidates)))

    def shuffle(rows: list[dict[str, Any]]) -> None:
        rows[:] = [rows[i] for i in order]

    edit(tmp_path / "exposures.parquet", shuffle)
    read = read_logs(tmp_path)[0].requests
    where = np.concatenate([[0], np.cumsum(log.requests.candidate_counts)])
    start = 0
    for name, count in zip(read.request_id, read.candidate_counts, strict=True):
        i = int(np.flatnonzero(log.requests.request_id == name)[0])
        rows = sorted(range(where[i], where[i + 1]), key=lambda row: int(np.argmax(order == row)))
        assert np.array_equal(read.candidates[start : start + count], log.requests.candidates[rows])
        assert np.array_equal(read.click[start : start + count], log.requests.click[rows])
        start += count


def test_defaults_fill_absent_columns_and_nulls(tmp_path: Path) -> None:
    """A feature with a default may be null, or its column absent."""
    write_logs(tmp_path, random_logs(3))
    path = tmp_path / "exposures.parquet"
    edit(path, lambda rows: rows[0].update({"candidate.price": None}))
    assert read_logs(tmp_path)[0].requests.candidates["numbers"][0, 0] == 1.5
    pq.write_table(pq.read_table(path).drop_columns("candidate.price"), path)
    assert (read_logs(tmp_path)[0].requests.candidates["numbers"][:, 0] == 1.5).all()


def test_features_can_be_left_out(tmp_path: Path) -> None:
    """A schema of fewer features reads the same logs without the others."""
    write_logs(tmp_path, random_logs(3))
    fewer = FeatureSchema(**(SCHEMA.model_dump() | {"cross": ()}))
    log, _ = read_logs(tmp_path, fewer)
    assert log.requests.candidates["numbers"].shape[1] == 1


@pytest.mark.parametrize("column", ["request_id", "click", "candidate.distance", "context.hour"])
def test_missing_column_is_named(tmp_path: Path, column: str) -> None:
    """A missing column is refused with its file's and its own name."""
    write_logs(tmp_path, random_logs(3))
    path = tmp_path / "exposures.parquet"
    pq.write_table(pq.read_table(path).drop_columns(column), path)
    with pytest.raises(LogError, match=rf"exposures\.parquet: column '{column}' is missing"):
        read_logs(tmp_path)


def test_wrong_type_is_named(tmp_path: Path) -> None:
    """A column of the wrong type is refused with what was found and what was expected."""
    write_logs(tmp_path, random_logs(3))
    path = tmp_path / "events.parquet"
    table = pq.read_table(path)
    texts = pa.array(["three"] * len(table))
    table = table.set_column(table.column_names.index("item_id"), "item_id", texts)
    pq.write_table(table, path)
    with pytest.raises(LogError, match="column 'item_id' is string; expected integers"):
        read_logs(tmp_path)


def test_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    """A file that is absent, or is no Parquet, is refused by name."""
    write_logs(tmp_path, random_logs(3))
    (tmp_path / "events.parquet").write_bytes(b"not parquet")
    with pytest.raises(LogError, match=r"events\.parquet: not a Parquet file"):
        read_logs(tmp_path)
    (tmp_path / "events.parquet").unlink()
    with pytest.raises(LogError, match=r"events\.parquet: not found"):
        read_logs(tmp_path)


def as_parts(directory: Path, *parts: Logs) -> None:
    """Write logs as directories of files `part-<i>.parquet`."""
    for i, log in enumerate(parts):
        with LogWriter(directory, SCHEMA, f"part-{i}") as writer:
            writer.write(log.snapshots)
            writer.write(log.events)
            writer.write(log.requests)


def rejected(directory: Path) -> dict[tuple[str, str], int]:
    """Rows set aside by file and reason."""
    return dict(read_logs(directory)[1].counts)


def test_a_table_may_be_a_directory_of_files(tmp_path: Path) -> None:
    """Read in order of name as one; a second copy of a file adds nothing, and is counted."""
    log = random_logs(3)
    as_parts(tmp_path, log)
    assert same(read_logs(tmp_path)[0], log)
    as_parts(tmp_path, log, log)
    assert same(read_logs(tmp_path)[0], log)
    name = "part-1.parquet"
    assert rejected(tmp_path) == {
        (f"snapshots.parquet/{name}", "repeats a (user_id, snapshot_ms)"): 6,
        (f"events.parquet/{name}", "repeats a (user_id, event_id)"): 30,
        (f"exposures.parquet/{name}", "repeats an item_id in its request"): len(log.requests.click),
    }


def test_a_file_of_another_schema_is_set_aside_whole(tmp_path: Path) -> None:
    """A column missing, one of another type, no Parquet at all: named, and the others are read."""
    log = random_logs(3)
    as_parts(tmp_path, *[log] * 4)
    shown = len(log.requests.click)
    one, two, three = (tmp_path / f"exposures.parquet/part-{i}.parquet" for i in (1, 2, 3))
    table = pq.read_table(one)
    pq.write_table(table.drop_columns("candidate.distance"), one)
    place = table.column_names.index("time_ms")
    pq.write_table(table.set_column(place, "time_ms", table["time_ms"].cast(pa.string())), two)
    three.write_bytes(b"torn")
    read, rejects = read_logs(tmp_path)
    assert same(read, log)
    counts = {file: (why, n) for (file, why), n in rejects.counts.items() if "exposures" in file}
    assert counts == {
        f"exposures.parquet/{one.name}": ("column 'candidate.distance' is missing", shown),
        f"exposures.parquet/{two.name}": (
            "column 'time_ms' is string; expected signed integers",
            shown,
        ),
        f"exposures.parquet/{three.name}": ("not a Parquet file", 1),
    }


def test_files_may_differ_in_width(tmp_path: Path) -> None:
    """int32 in one and int64 in another are one column of integers."""
    log = random_logs(3)
    as_parts(tmp_path, random_logs(3, requests=0), log)
    path = tmp_path / "exposures.parquet/part-1.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("context.hour")
    narrow = table["context.hour"].cast(pa.int8())
    pq.write_table(table.set_column(place, "context.hour", narrow), path)
    assert same(read_logs(tmp_path)[0], log)


def test_labels_that_are_nan_are_set_aside(tmp_path: Path) -> None:
    """Floats hold labels too, as some tools write nullable ones; NaN is none of 0, 1 and null."""
    log = random_logs(3)
    write_logs(tmp_path, log)
    path = tmp_path / "exposures.parquet"
    table = pq.read_table(path)
    clicks = table["click"].cast(pa.float64()).to_pylist()
    clicks[2] = float("nan")
    place = table.column_names.index("click")
    pq.write_table(table.set_column(place, "click", pa.array(clicks, pa.float64())), path)
    read, rejects = read_logs(tmp_path)
    assert rejects.counts == {("exposures.parquet", "click: NaN; expected 0, 1 or null"): 1}
    rejects.write(tmp_path / "rejects.csv")
    assert 'exposures.parquet,2,"click: NaN' in (tmp_path / "rejects.csv").read_text()
    assert len(read.requests.click) == len(log.requests.click) - 1
