"""One Parquet table of a training log, column by column, keeping account of its bad rows.

A table is a file, or a directory of files `*.parquet` that are read as one, in order of name. A
file without a column that the others have, or with another type in it, is set aside whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_def.data.logs import UNLABELLED, LogError
from model_def.data.rejects import WHOLE_FILE, Rejects
from model_def.rows import fits
from model_def.schema import Feature, NumberFeature


@dataclass(frozen=True)
class Part:
    """One file: its name in reports, and the first of its rows in the table."""

    name: str
    table: Any
    first: int

    @property
    def rows(self) -> NDArray[np.int64]:
        """Its rows in the table."""
        return np.arange(self.first, self.first + self.table.num_rows)


class Table:
    """Every reader returns a whole column; where a value is bad, its row leaves `good`.

    A row is rejected once, for the first reason found. Raises LogError for what no file can give.
    """

    def __init__(self, path: Path, rejects: Rejects):
        self.path, self._rejects = path, rejects
        self._parts: list[Part] = []
        rows = 0
        for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
            name = f"{path.name}/{file.name}" if path.is_dir() else path.name
            try:
                table = pq.read_table(file)
            except FileNotFoundError:
                raise LogError(f"{path}: not found; expected a Parquet file") from None
            except pa.ArrowInvalid as error:
                if not path.is_dir():
                    raise LogError(f"{path}: not a Parquet file ({error})") from error
                rejects.add(name, "not a Parquet file", np.array([WHOLE_FILE]))
                continue
            self._parts.append(Part(name, table, rows))
            rows += table.num_rows
        if not self._parts:
            raise LogError(f"{path}: holds no Parquet file")
        self.good: NDArray[np.bool_] = np.ones(rows, bool)

    def __len__(self) -> int:
        return len(self.good)

    def reject(self, rows: NDArray[np.int64], reason: str) -> None:
        """Set `rows` aside."""
        fresh = np.unique(rows[self.good[rows]])
        self.good[fresh] = False
        for part in self._parts:
            low, high = np.searchsorted(fresh, (part.first, part.first + part.table.num_rows))
            self._rejects.add(part.name, reason, fresh[low:high] - part.first)

    def reject_repeats(self, reason: str, *key: NDArray[np.int64]) -> None:
        """Of the good rows that agree in every column of `key`, keep the first."""
        kept = np.flatnonzero(self.good)
        order = kept[np.lexsort([column[kept] for column in key])]
        same = np.ones(max(0, len(kept) - 1), bool)
        for column in key:
            same &= np.diff(column[order]) == 0
        self.reject(order[1:][same], reason)

    def strings(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
        """A required text column: codes [rows], and the texts, in order of first appearance."""
        column = self._column(name, _is_text, "strings")
        self._require_valid(name, column)
        return _encoded(column)

    def strings_or(
        self, name: str, codes: NDArray[np.int64], texts: NDArray[np.str_]
    ) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
        """A text column that may be absent or null, and is `texts[codes]` there."""
        if not any(name in part.table.column_names for part in self._parts):
            return codes, texts
        column = self._column(name, _is_text, "strings", optional=True)
        own, known = _encoded(column)
        given = np.asarray(column.is_valid())
        return np.where(given, own, len(known) + codes), np.concatenate([known, texts])

    def integers(self, name: str) -> NDArray[np.int64]:
        """A required integer column."""
        column = self._column(name, pa.types.is_signed_integer, "signed integers")
        self._require_valid(name, column)
        return np.asarray(column.fill_null(0), dtype=np.int64)

    def times(self, name: str) -> NDArray[np.int64]:
        """A required column of ms since the epoch."""
        values = self.integers(name)
        self.reject(np.flatnonzero(values < 0), f"{name}: negative")
        return values

    def labels(self, name: str) -> NDArray[np.int8]:
        """int8: 1, 0, or UNLABELLED where null. Floats may hold them too, but no NaN."""
        column = self._column(name, _is_label, "int8")
        values = np.asarray(column.cast(pa.float64()).fill_null(UNLABELLED))
        labelled = np.asarray(column.is_valid())
        self.reject(np.flatnonzero(np.isnan(values)), f"{name}: NaN; expected 0, 1 or null")
        bad = labelled & (values != 0) & (values != 1)
        self.reject(np.flatnonzero(bad), f"{name}: expected 0 or 1")
        return np.where(bad, UNLABELLED, values).astype(np.int8)

    def features(self, prefix: str, features: Sequence[Feature]) -> dict[str, NDArray[Any]]:
        """Columns by feature name; one that is absent and has a default is left out."""
        columns = {}
        for feature in features:
            column = self._feature_column(prefix, feature)
            if column is not None:
                columns[feature.name], bad = self._values(prefix, column, feature)
                for reason, where in bad.items():
                    self.reject(where, reason)
        return columns

    def lists(
        self, prefix: str, features: Sequence[Feature]
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        """Flattened list columns by feature name, `time_ms` among them, and each value's row.

        Rows whose lists differ in length are rejected, and have no values here.
        """
        name = f"{prefix}time_ms"
        named: dict[str, Any] = {
            "time_ms": self._column(name, _list_of(pa.types.is_signed_integer), "lists of int64")
        }
        for feature in features:
            column = self._feature_column(prefix, feature, _list_of)
            if column is not None:
                named[feature.name] = column
        lengths = []
        for key, column in named.items():
            self._require_valid(prefix + key, column)
            named[key] = column.combine_chunks()
            lengths.append(np.asarray(named[key].value_lengths().fill_null(0), np.int64))
        even = np.all([length == lengths[0] for length in lengths], axis=0)
        self.reject(np.flatnonzero(~even), f"{prefix}*: lists of different lengths")
        counts = lengths[0][even]
        owner = np.repeat(np.flatnonzero(even), counts)
        named = {key: array.filter(pa.array(even)).flatten() for key, array in named.items()}
        times = named.pop("time_ms")
        self.reject(owner[np.flatnonzero(np.asarray(times.is_null()))], f"{name}: null")
        lists: dict[str, NDArray[Any]] = {"time_ms": np.asarray(times.fill_null(0), np.int64)}
        by_name = {feature.name: feature for feature in features}
        for key, values in named.items():
            lists[key], bad = self._values(prefix, values, by_name[key])
            for reason, where in bad.items():
                self.reject(owner[where], reason)
        return owner, lists

    def _values(
        self, prefix: str, column: Any, feature: Feature
    ) -> tuple[NDArray[Any], dict[str, NDArray[np.int64]]]:
        """Values (0 or the default where null), and the bad ones by reason."""
        name = prefix + feature.name
        values = np.asarray(column.fill_null(feature.default or 0))
        good, expected = fits(feature, values)
        bad = {f"{name}: expected {expected}": np.flatnonzero(~good)}
        if feature.default is None:
            bad[f"{name}: null"] = np.flatnonzero(np.asarray(column.is_null()))
        return values, bad

    def _feature_column(
        self, prefix: str, feature: Feature, of: "Callable[[Fits], Fits]" = lambda fits: fits
    ) -> Any | None:
        name, optional = prefix + feature.name, feature.default is not None
        if optional and not any(name in part.table.column_names for part in self._parts):
            return None
        number = isinstance(feature, NumberFeature)
        fits = _is_number if number else pa.types.is_integer
        return self._column(name, of(fits), "numbers" if number else "integers", optional)

    def _column(self, name: str, fits: "Fits", expected: str, optional: bool = False) -> Any:
        """The column over all files; those that have none that `fits` are set aside, or give
        nulls where it is `optional`. Raises LogError if no file has one."""
        faults: dict[int, str] = {}
        fields = []
        for place, part in enumerate(self._parts):
            if name not in part.table.column_names:
                if not optional:
                    faults[place] = f"column '{name}' is missing"
                continue
            kind = part.table.column(name).type
            if fits(kind):
                fields.append(pa.schema([(name, kind)]))
            else:
                faults[place] = f"column '{name}' is {kind}; expected {expected}"
        if not fields:
            raise LogError(f"{self.path}: {next(iter(faults.values()))}")
        common = pa.unify_schemas(fields, promote_options="permissive").field(name).type
        chunks = []
        for place, part in enumerate(self._parts):
            if place in faults:
                self.reject(part.rows, faults[place])
            if place in faults or name not in part.table.column_names:
                chunks.append(pa.nulls(part.table.num_rows, common))
            else:
                chunks += part.table.column(name).cast(common).chunks
        return pa.chunked_array(chunks, common)

    def _require_valid(self, name: str, column: Any) -> None:
        self.reject(np.flatnonzero(np.asarray(column.is_null())), f"{name}: null")


Fits = Callable[[pa.DataType], bool]
"""Whether a column's type will do."""


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_label(kind: pa.DataType) -> bool:
    return _is_number(kind) or bool(pa.types.is_null(kind))


def _list_of(fits: Fits) -> Fits:
    def lists(kind: pa.DataType) -> bool:
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return bool(listed and fits(kind.value_type))

    return lists


def _encoded(column: Any) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Codes [rows], and the texts in order of first appearance; null is the empty text."""
    encoded = column.fill_null("").combine_chunks().dictionary_encode()
    texts: NDArray[np.str_] = np.asarray(encoded.dictionary.to_pylist(), dtype=np.str_)
    return np.asarray(encoded.indices, np.int64), texts
