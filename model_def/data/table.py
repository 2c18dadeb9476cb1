"""One Parquet file of a training log, column by column, keeping account of its bad rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_def.data.logs import UNLABELLED, LogError
from model_def.data.rejects import Rejects
from model_def.rows import fits
from model_def.schema import Feature, NumberFeature


class Table:
    """Every reader returns a whole column; where a value is bad, its row leaves `good`.

    A row is rejected once, for the first reason found.
    """

    def __init__(self, path: Path, rejects: Rejects):
        try:
            self._table = pq.read_table(path)
        except FileNotFoundError:
            raise LogError(f"{path}: not found; expected a Parquet file") from None
        except pa.ArrowInvalid as error:
            raise LogError(f"{path}: not a Parquet file ({error})") from error
        self.path, self._rejects = path, rejects
        self.good: NDArray[np.bool_] = np.ones(self._table.num_rows, bool)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def reject(self, rows: NDArray[np.int64], reason: str) -> None:
        """Set `rows` aside."""
        fresh = np.unique(rows[self.good[rows]])
        self.good[fresh] = False
        self._rejects.add(self.path.name, reason, fresh)

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
        column = self._column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            self._wrong_type(name, column, "strings")
        self._require_valid(name, column)
        encoded = column.fill_null("").combine_chunks().dictionary_encode()
        texts: NDArray[np.str_] = np.asarray(encoded.dictionary.to_pylist(), dtype=np.str_)
        return np.asarray(encoded.indices, np.int64), texts

    def integers(self, name: str) -> NDArray[np.int64]:
        """A required integer column."""
        column = self._column(name)
        if not pa.types.is_signed_integer(column.type):
            self._wrong_type(name, column, "signed integers")
        self._require_valid(name, column)
        return np.asarray(column.fill_null(0), dtype=np.int64)

    def times(self, name: str) -> NDArray[np.int64]:
        """A required column of ms since the epoch."""
        values = self.integers(name)
        self.reject(np.flatnonzero(values < 0), f"{name}: negative")
        return values

    def labels(self, name: str) -> NDArray[np.int8]:
        """int8: 1, 0, or UNLABELLED where null."""
        column = self._column(name)
        if not (pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
            self._wrong_type(name, column, "int8")
        values = np.asarray(column.cast(pa.int64()).fill_null(UNLABELLED))
        labelled = np.asarray(column.is_valid())
        self.reject(
            np.flatnonzero(labelled & (values != 0) & (values != 1)), f"{name}: expected 0 or 1"
        )
        return values.astype(np.int8)

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
        named: dict[str, Any] = {"time_ms": self._column(name)}
        for feature in features:
            column = self._feature_column(prefix, feature)
            if column is not None:
                named[feature.name] = column
        lengths = []
        for key, column in named.items():
            if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
                self._wrong_type(prefix + key, column, "lists")
            self._require_valid(prefix + key, column)
            named[key] = column.combine_chunks()
            lengths.append(np.asarray(named[key].value_lengths().fill_null(0), np.int64))
        even = np.all([length == lengths[0] for length in lengths], axis=0)
        self.reject(np.flatnonzero(~even), f"{prefix}*: lists of different lengths")
        counts = lengths[0][even]
        owner = np.repeat(np.flatnonzero(even), counts)
        named = {key: array.filter(pa.array(even)).flatten() for key, array in named.items()}
        times = named.pop("time_ms")
        if not pa.types.is_signed_integer(times.type):
            self._wrong_type(name, times, "lists of signed integers")
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
        number = isinstance(feature, NumberFeature)
        if not (pa.types.is_integer(column.type) or (number and pa.types.is_floating(column.type))):
            self._wrong_type(name, column, "numbers" if number else "integers")
        values = np.asarray(column.fill_null(feature.default or 0))
        good, expected = fits(feature, values)
        bad = {f"{name}: expected {expected}": np.flatnonzero(~good)}
        if feature.default is None:
            bad[f"{name}: null"] = np.flatnonzero(np.asarray(column.is_null()))
        return values, bad

    def _feature_column(self, prefix: str, feature: Feature) -> Any | None:
        if feature.default is not None and prefix + feature.name not in self._table.column_names:
            return None
        return self._column(prefix + feature.name)

    def _column(self, name: str) -> Any:
        if name not in self._table.column_names:
            raise LogError(f"{self.path}: column '{name}' is missing")
        return self._table.column(name)

    def _require_valid(self, name: str, column: Any) -> None:
        self.reject(np.flatnonzero(np.asarray(column.is_null())), f"{name}: null")

    def _wrong_type(self, name: str, column: Any, expected: str) -> None:
        raise LogError(f"{self.path}: column '{name}' is {column.type}; expected {expected}")
