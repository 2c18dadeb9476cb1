"""Reads the request log; `model_def.served` documents its files.

A file that is no log of this schema, and a row that is no request, are set aside with the reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_def.data.logs import LogError
from model_def.data.rejects import WHOLE_FILE, Rejects
from model_def.schema import FeatureSchema
from model_def.served import PREFIX, SCHEMA_KEY, ServedRequest, from_record

LISTS = ("answered", "score", "ctr", "ctcvr")


@dataclass(frozen=True)
class LogFile:
    """One file: its name under the log's directory, its schema, its rows in memory."""

    name: str
    schema: FeatureSchema
    table: Any

    @property
    def times(self) -> NDArray[np.int64]:
        """Of every request, ms."""
        return np.asarray(self.table["time_ms"].fill_null(0), np.int64)

    def requests(self, rows: NDArray[np.int64], rejects: Rejects) -> Iterator[ServedRequest]:
        """The requests in these rows; those that are none are set aside."""
        for row, record in zip(rows.tolist(), _records(self.table.take(rows)), strict=True):
            try:
                yield from_record(self.schema, record)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"not a request: {error}"
                rejects.add(self.name, reason, np.array([row]))


def log_files(directory: Path) -> list[str]:
    """Names of the log's files under `directory`, the oldest first."""
    if not directory.is_dir():
        raise LogError(f"{directory}: no such directory; expected a request log")
    paths = sorted(directory.rglob(f"{PREFIX}*.parquet"), key=lambda path: path.name)
    return [path.relative_to(directory).as_posix() for path in paths]


def open_log_file(directory: Path, name: str, rejects: Rejects) -> LogFile | None:
    """One file; None where it is no file of a request log, or gone since it was listed."""
    try:
        table = pq.read_table(directory / name)
        schema = FeatureSchema.model_validate_json((table.schema.metadata or {})[SCHEMA_KEY])
        missing = next(n for n in (*COLUMNS, None) if n not in table.column_names)
    except FileNotFoundError:
        return None  # the log is bounded: its oldest files go
    except pa.ArrowInvalid:
        missing, reason = None, "not a Parquet file"
    except (KeyError, ValueError):
        missing, reason = None, "holds no feature schema"
    else:
        if missing is None:
            return LogFile(name, schema, table)
        reason = f"column '{missing}' is missing"
    rejects.add(name, reason, np.array([WHOLE_FILE]))
    return None


COLUMNS = (
    *("request_id", "user_id", "scene", "model_version", "time_ms", "snapshot_ms", "ranked_by"),
    *("reason", "profile", "lifelong", "realtime", "context", "candidates", *LISTS),
)


def _records(table: Any) -> Iterator[dict[str, Any]]:
    """Rows as dicts; lists are NumPy slices, as a Python number for each score would cost most."""
    columns = {name: table[name].to_pylist() for name in COLUMNS if name not in LISTS}
    columns |= {name: _slices(table[name].combine_chunks()) for name in LISTS}
    for i in range(table.num_rows):
        yield {name: values[i] for name, values in columns.items()}


def _slices(lists: Any) -> list[NDArray[Any] | None]:
    values, offsets = np.asarray(lists.values), np.asarray(lists.offsets)
    return [
        values[low:high] if valid else None
        for low, high, valid in zip(
            offsets[:-1].tolist(), offsets[1:].tolist(), lists.is_valid().to_pylist(), strict=True
        )
    ]
