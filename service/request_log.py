"""The request log: what was served, in Parquet files, written by a thread that nobody waits for.

A file holds a minute of requests, or fewer bytes than its limit: it is written whole to a name
of its own and then renamed, so a reader never sees a part of one, and kill -9 costs at most the
requests still in memory. What does not fit (the queue, the disk) is dropped and counted; the next
file is tried anew. `model_def.served` documents the columns.
"""

import errno
import logging
import os
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread
from time import monotonic
from typing import Any
from zlib import crc32

from model_def.schema import FeatureSchema
from model_def.served import PREFIX, SCHEMA_KEY, SEGMENTS, ServedRequest, to_record
from service.errors import BadSetting
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger("mtgr")

CLOSE_S = 10.0
"""Longest wait for the last file when the gateway stops, seconds."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RequestLog:
    """Writes under `directory`, a folder a schema, from a thread of its own."""

    def __init__(self, directory: Path, settings: Settings, metrics: Metrics):
        self._directory, self._settings, self._metrics = directory, settings, metrics
        self._queue: Queue[tuple[FeatureSchema, ServedRequest] | None]
        self._queue = Queue(settings.request_log_queue)
        self._thread = Thread(target=self._run, name="request-log", daemon=True)
        self._numbers = count()
        self._limit = round(settings.request_log_share * (1 << 32))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def offer(self, schema: FeatureSchema, served: ServedRequest) -> None:
        """Take a request if its id is in the share and there is room; never waits, never raises.

        The share goes by the request's id, so that every gateway and every retry agree.
        """
        if crc32(served.request_id.encode()) >= self._limit:
            return
        try:
            self._queue.put_nowait((schema, served))
        except Full:
            self._metrics.request_log.labels("overflow").inc()

    def close(self) -> None:
        """Write what waits and end the thread; a disk that hangs holds nobody up for longer."""
        until = monotonic() + CLOSE_S
        try:
            self._queue.put(None, timeout=CLOSE_S)
        except Full:
            log.error("the request log's disk hangs; what waited is not in it")
            return
        self._thread.join(max(0.0, until - monotonic()))

    def _run(self) -> None:
        """Fill a file a schema; write all when they are full or the oldest request has waited."""
        settings = self._settings
        files: dict[int, tuple[FeatureSchema, list[dict[str, Any]]]] = {}
        closing = False
        while not closing:
            held, until = 0, monotonic() + settings.request_log_file_s
            while held < settings.request_log_file_bytes:
                try:
                    left_s = max(0.0, until - monotonic()) if files else None
                    item = self._queue.get(timeout=left_s)
                except Empty:
                    break
                if item is None:
                    closing = True
                    break
                schema, served = item
                if not files:
                    until = monotonic() + settings.request_log_file_s
                try:
                    record = to_record(schema, served)
                except Exception:  # a bug of ours must not end the log of all later requests
                    log.exception("a request is not in the request log")
                    self._metrics.request_log.labels("error").inc()
                    continue
                held += sum(len(record[part]) for part in SEGMENTS)
                # By identity: hashing a schema's every field costs more than the rest of this.
                files.setdefault(id(schema), (schema, []))[1].append(record)
            for schema, records in files.values():
                self._write(schema, records)
            files.clear()

    def _write(self, schema: FeatureSchema, records: list[dict[str, Any]]) -> None:
        try:
            written = write_file(self._directory / schema.name, self._name(), schema, records)
            outcome = "written"
            self._metrics.request_log_bytes.inc(written)
            self._metrics.request_log_removed.inc(
                prune(self._directory, self._settings.request_log_bytes)
            )
        except OSError as error:
            outcome = "disk_full" if error.errno in FULL else "error"
            log.error("%d requests are not in the request log: %s", len(records), error)
        except Exception:  # the same
            outcome = "error"
            log.exception("requests are not in the request log")
        self._metrics.request_log.labels(outcome).inc(len(records))

    def _name(self) -> str:
        at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        return f"{PREFIX}{at}-{os.getpid()}-{next(self._numbers)}.parquet"


def open_request_log(settings: Settings, metrics: Metrics) -> RequestLog | None:
    """The log that the settings ask for, or None; raises BadSetting where it cannot be written."""
    if not settings.request_log_dir:
        return None
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise BadSetting(
            "request_log_dir: needs pyarrow: pip install 'mtgr-serving[log]'"
        ) from None
    pyarrow.array([])  # at its first use it imports pandas, if that is there: not under requests
    directory = Path(settings.request_log_dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadSetting(f"request_log_dir: {error}") from None
    return RequestLog(directory, settings, metrics)


def write_file(
    directory: Path, name: str, schema: FeatureSchema, records: list[dict[str, Any]]
) -> int:
    """Write one file of the log, whole or not at all; its size in bytes. Raises OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, binary = pa.string(), pa.binary()
    numbers = pa.list_(pa.float32())
    columns = pa.schema(
        [
            *((key, text) for key in ("request_id", "user_id", "scene", "model_version")),
            ("time_ms", pa.int64()),
            ("snapshot_ms", pa.int64()),
            ("ranked_by", text),
            ("reason", text),
            *((part, binary) for part in ("profile", "lifelong", "realtime", "context")),
            ("candidates", binary),
            ("answered", pa.list_(pa.int32())),
            *((key, numbers) for key in ("score", "ctr", "ctcvr")),
        ],
        metadata={SCHEMA_KEY: schema.model_dump_json().encode()},
    )
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{name}.partial"
    try:
        with partial.open("wb") as file:
            pq.write_table(
                pa.Table.from_pylist(records, columns),
                file,
                compression="zstd",
                # A user's profile and lifelong sequence recur through a session: stored once.
                use_dictionary=["user_id", "scene", "model_version", "profile", "lifelong"],
                dictionary_pagesize_limit=64 << 20,
            )
            file.flush()
            os.fsync(file.fileno())
        partial.rename(directory / name)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return (directory / name).stat().st_size


def prune(directory: Path, limit_bytes: int) -> int:
    """Remove the oldest files until the rest, but for the newest, fit; how many were removed.

    Other processes prune the same directory: a file may be gone before we look.
    """
    sizes: list[tuple[str, int, Path]] = []
    for path in directory.rglob(f"{PREFIX}*.parquet"):
        try:
            sizes.append((path.name, path.stat().st_size, path))
        except FileNotFoundError:
            continue
    excess = sum(size for _, size, _ in sizes) - limit_bytes
    removed = 0
    for _, size, path in sorted(sizes)[:-1]:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
        removed += 1
    return removed
