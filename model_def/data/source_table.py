"""A user's own table, CSV (plain or gzip) or Parquet, column by column, rejecting bad rows.

Values come as text and are parsed here, so one bad value costs its row and not the file.
"""

import csv
import re
from collections.abc import Callable
from datetime import datetime
from hashlib import blake2b
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_def.data.mapping import MappingError, milliseconds
from model_def.data.rejects import Rejects

INTEGER = re.compile(r"[+-]?\d+(\.0*)?")


class SourceTable:
    """Readers return whole columns; where a value is bad, its row leaves `good`."""

    def __init__(self, path: Path, rejects: Rejects):
        if not path.is_file():
            raise MappingError(f"{path}: not found; expected a table (.csv, .csv.gz or .parquet)")
        self.path, self._rejects = path, rejects
        malformed: list[int] = []
        try:
            table = pq.read_table(path) if path.suffix == ".parquet" else _csv(path, malformed)
        except pa.ArrowInvalid as error:
            raise MappingError(f"{path}: {error}") from error
        self._columns = {name: table.column(name) for name in table.column_names}
        # A malformed line is no row of `table`; the rows after it keep their place in the file.
        numbers = np.arange(table.num_rows + len(malformed))
        self._file_row = np.delete(numbers, malformed)
        self.good: NDArray[np.bool_] = np.ones(table.num_rows, bool)
        rejects.add(path.name, "malformed: another number of columns", np.array(malformed, int))

    def __len__(self) -> int:
        return len(self.good)

    def reject(self, rows: NDArray[np.int64], reason: str) -> None:
        """Set `rows` aside; each once, for the first reason found."""
        fresh = np.unique(rows[self.good[rows]])
        self.good[fresh] = False
        self.note(fresh, reason)

    def note(self, rows: NDArray[np.int64], reason: str) -> None:
        """Write `rows` down as rejected from a part of the import only."""
        self._rejects.add(self.path.name, reason, self._file_row[rows])

    def texts(self, name: str) -> NDArray[np.str_]:
        """A column as text, "" where empty; whole numbers lose a trailing ".0"."""
        values = self._column(name)
        return _unique_map(values, np.dtype(np.str_), lambda text: _whole(text) or text)

    def keys(self, name: str) -> NDArray[np.str_]:
        """A column as text; rows where it is empty are rejected."""
        values = self.texts(name)
        self.reject(np.flatnonzero(values == ""), f"{name}: empty")
        return values

    def ids(self, name: str, *, required: bool = False) -> NDArray[np.int64]:
        """A column as int64 ids (see `stable_id`), 0 where empty."""
        texts = self.keys(name) if required else self.texts(name)
        return _unique_map(texts, np.dtype(np.int64), stable_id)

    def numbers(self, name: str, default: float | None) -> NDArray[np.float64]:
        """A column as finite numbers; rows with another value are rejected."""
        fallback = np.nan if default is None else default
        values = _unique_map(
            self._column(name), np.dtype(np.float64), lambda text: _number(text, fallback)
        )
        self.reject(np.flatnonzero(~np.isfinite(values)), f"{name}: expected a finite number")
        return np.where(np.isfinite(values), values, 0.0)

    def times(self, name: str) -> NDArray[np.int64]:
        """A column as ms since the epoch; rows with another value are rejected."""
        values = _unique_map(self._column(name), np.dtype(np.int64), _time)
        self.reject(np.flatnonzero(values < 0), f"{name}: expected a timestamp since 1970 or ms")
        return values

    def _column(self, name: str) -> NDArray[np.str_]:
        if name not in self._columns:
            raise MappingError(
                f"{self.path}: no column '{name}'; it has {', '.join(sorted(self._columns))}"
            )
        column = self._columns[name]
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        texts = column.cast(pa.string()).fill_null("")
        return np.asarray(texts.to_pylist(), dtype=np.str_)


def stable_id(text: str) -> int:
    """An integer as it is, a text by the first 8 bytes of BLAKE2b; "" is 0.

    The same in every process and version: callers of the service must send the same ids.
    """
    if not text:
        return 0
    whole = _whole(text)
    if whole is not None and -(1 << 63) <= int(whole) < 1 << 63:
        return int(whole)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _csv(path: Path, malformed: list[int]) -> Any:
    """Every column as text. Appends the malformed lines' row numbers to `malformed`."""

    def skip(row: pa_csv.InvalidRow) -> str:
        malformed.append(row.number - 2)  # numbered from 1, the header included
        return "skip"

    with pa.input_stream(path, compression="detect") as stream, TextIOWrapper(stream) as text:
        header = next(csv.reader(text), [])
    return pa_csv.read_csv(
        path,
        pa_csv.ReadOptions(use_threads=False),  # else malformed lines have no number
        pa_csv.ParseOptions(invalid_row_handler=skip),
        pa_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )


def _unique_map(
    texts: NDArray[np.str_], dtype: np.dtype[Any], parse: Callable[[str], Any]
) -> NDArray[Any]:
    """`parse` of every text, called once for each distinct one."""
    unique, codes = np.unique(texts, return_inverse=True)
    parsed = [parse(text.strip()) for text in unique.tolist()]
    return np.array(parsed, None if dtype.kind == "U" else dtype)[codes]


def _whole(text: str) -> str | None:
    return str(int(text.split(".")[0])) if INTEGER.fullmatch(text) else None


def _number(text: str, fallback: float) -> float:
    try:
        return float(text) if text else fallback
    except ValueError:
        return np.nan


def _time(text: str) -> int:
    if whole := _whole(text):
        return int(whole)
    try:
        return milliseconds(datetime.fromisoformat(text))
    except ValueError:
        return -1
