"""The label stream of Redis -> Parquet files, so that labels outlive the stream's bound.

`/v1/events` acknowledges a label once it is in the stream `mtgr:<schema>:labels`. Each export
continues after the last id that it wrote: files are `labels-<ms>-<number>.parquet`, named by that
id and renamed into place whole. At least once, as the stream is: `mtgr join` counts repeats.

    request_id, event_id, user_id   string
    item_id, time_ms                int64
    action                          string: exposure, click or order
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from redis import Redis

COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("request_id", "event_id", "user_id")),
        ("item_id", pa.int64()),
        ("time_ms", pa.int64()),
        ("action", pa.string()),
    ]
)
SEEN_KEY = b"mtgr.entries"
"""Metadata: entries that the stream has ever had, up to the file's last one."""

TOGETHER = 10_000


@dataclass(frozen=True)
class Exported:
    """Labels written, and those that the stream dropped before they could be."""

    written: int
    lost: int


def export_labels(redis: Redis, schema: str, directory: Path) -> Exported:
    """Write what the stream of a schema has had since the last export into `directory`."""
    stream = f"mtgr:{schema}:labels"
    if not redis.exists(stream):
        return Exported(0, 0)
    directory.mkdir(parents=True, exist_ok=True)
    last, seen = _position(directory)
    info = redis.xinfo_stream(stream)
    dropped = int(info["entries-added"]) - int(info["length"])
    lost = max(0, dropped - seen)
    seen += lost
    written = 0
    while entries := _after(redis, stream, last):
        last = entries[-1][0].decode()
        seen, written = seen + len(entries), written + len(entries)
        _write(directory / _name(last), [fields for _, fields in entries], seen)
    return Exported(written, lost)


def schemas_with_labels(redis: Redis) -> list[str]:
    """Names of the schemas that have a label stream."""
    keys = redis.scan_iter("mtgr:*:labels", count=1000, _type="stream")
    return sorted(key.decode().split(":")[1] for key in keys)


def _after(redis: Redis, stream: str, last: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    entries: Any = redis.xrange(stream, f"({last}", count=TOGETHER)
    return cast(list[tuple[bytes, dict[bytes, bytes]]], entries)


def _position(directory: Path) -> tuple[str, int]:
    """The last id exported, and how many entries the stream had had by then."""
    files = sorted(directory.glob("labels-*.parquet"))
    if not files:
        return "0-0", 0
    _, ms, number = files[-1].stem.split("-")
    seen = pq.read_metadata(files[-1]).metadata[SEEN_KEY]
    return f"{int(ms)}-{int(number)}", int(seen)


def _name(last: str) -> str:
    ms, number = map(int, last.split("-"))
    return f"labels-{ms:015d}-{number:09d}.parquet"


def _write(path: Path, entries: list[dict[bytes, bytes]], seen: int) -> None:
    rows = [{name.decode(): value.decode() for name, value in e.items()} for e in entries]
    for row in rows:
        row |= {name: int(row[name]) for name in ("item_id", "time_ms")}  # type: ignore[misc] # text
    columns = COLUMNS.with_metadata({SEEN_KEY: str(seen).encode()})
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows, columns), partial, compression="zstd")
    partial.rename(path)
