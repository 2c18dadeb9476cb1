"""A table of a body, rows or columns alike, as checked columns and packed rows."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, get_args

import numpy as np
from msgspec import UNSET, Struct
from msgspec.structs import asdict, astuple
from numpy.typing import NDArray

from model_def.batch import Rows
from model_def.rows import InvalidFeature, checked_column, plain_row, rows_from_columns
from model_def.schema import IdFeature, Layout
from service.errors import InvalidRequest
from service.http.arrays import as_array, number_kinds, rows_as_columns
from service.http.refusals import Path, check_range, refused_value
from service.http.wire import BinaryColumn, BinaryType
from service.ranking import Floats

DTYPES = {name: np.dtype(name) for name in get_args(BinaryType)}


class Table(Struct, frozen=True):
    """A table of a body, whichever way it came: columns by name, and paths into the body."""

    count: int
    stamps: Mapping[str, Any]
    features: Mapping[str, Any]
    path: Path

    @classmethod
    def of(cls, wire: Any, root: str, counted: str, low: int, high: int) -> "Table":
        """From a list of row structs, or a struct of columns whose length is that of `counted`.

        Raises InvalidRequest unless it has `low` to `high` rows, before looking at any of them.
        """
        if isinstance(wire, list):
            check_range(len(wire), root, low, high, "rows")
            return cls._of_rows(wire, root)
        length = len(_column(getattr(wire, counted), root, counted, "q"))
        check_range(length, f"{root}.{counted}", low, high, "values")
        stamps = {
            name: _column(getattr(wire, name), root, name, kind)
            for name, kind in number_kinds(wire.__class__).items()
            if name != "features" and getattr(wire, name) is not UNSET
        }
        of_features = f"{root}.features"
        features = {
            name: _column(column, of_features, name, kind)
            for (name, kind), column in zip(
                number_kinds(wire.features.__class__).items(), astuple(wire.features), strict=True
            )
            if column is not UNSET
        }

        def path(name: str, row: int | None) -> str:
            place = f"{root}.{name}" if name in stamps else f"{root}.features.{name}"
            return place if row is None else f"{place}[{row}]"

        return cls(length, stamps, features, path)

    @classmethod
    def _of_rows(cls, rows: Sequence[Any], root: str) -> "Table":
        if not rows:
            return cls(0, {}, {}, lambda name, row: f"{root}.features.{name}")
        stamp_names = [n for n in rows[0].__struct_fields__ if n != "features"]
        kinds = number_kinds(rows[0].__class__)
        stamps: dict[str, Any] = {}
        for name in stamp_names:
            values = list(map(attrgetter(name), rows))
            if values.count(UNSET) < len(rows):
                stamps[name] = as_array(values, kinds[name])
        features = rows_as_columns(
            rows[0].features.__class__, [astuple(row.features) for row in rows]
        )

        def path(name: str, row: int | None) -> str:
            place = name if name in stamp_names else f"features.{name}"
            return f"{root}[{'*' if row is None else row}].{place}"

        return cls(len(rows), stamps, features, path)

    def stamp(self, name: str) -> NDArray[np.int64]:
        """int64 [count] of a stamp; raises InvalidRequest."""
        column = self.stamps.get(name, ())
        if isinstance(column, np.ndarray) and column.dtype == np.int64:
            return column  # its length is `count` and every value fits
        try:
            values = checked_column(IdFeature(name=name), column, self.count)
            return values.astype(np.int64, copy=False)
        except InvalidFeature as invalid:
            raise refused_value(invalid, column, self.path) from None

    def item_ids(self) -> NDArray[np.int64]:
        """Ids of the candidates, each once."""
        ids = self.stamp("item_id")
        ascending = ids.copy()
        ascending.sort()
        if np.logical_or.reduce(ascending[1:] == ascending[:-1]):
            order = np.argsort(ids, kind="stable")
            again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
            first, second = int(order[again[0]]), int(order[again[0] + 1])
            raise InvalidRequest(
                f"{ids[second]} again, first at {self.path('item_id', first)}",
                path=self.path("item_id", second),
                expected="item ids that differ",
            )
        return ids

    def recall_scores(self) -> Floats | None:
        """Recall scores [count], NaN for a row without one; None where no row has one."""
        column = self.stamps.get("recall_score")
        if column is None:
            return None
        scores = np.asarray(column)
        given = np.ones(len(scores), np.bool_)
        if scores.dtype == object:
            given = np.array([score is not UNSET for score in column])
        scores = np.where(given, scores, 0.0).astype(np.float64)
        if len(scores) != self.count:
            raise InvalidRequest(
                f"got {len(scores)} values",
                path=self.path("recall_score", None),
                expected=f"{self.count} values",
            )
        if not np.isfinite(scores).all():
            row = int(np.argmin(np.isfinite(scores)))
            raise InvalidRequest(
                f"got {scores[row]}", path=self.path("recall_score", row), expected="finite numbers"
            )
        scores[~given] = np.nan
        return scores

    def rows(
        self, layout: Layout, more: Mapping[str, Any], stamps: Mapping[str, Any] | None = None
    ) -> Rows:
        """Packed rows of the features, `more` taking the place of columns of the same name."""
        if not self.count and not self.features:
            return np.zeros(0, layout.record)
        return checked_rows(layout, {**self.features, **more}, self.count, stamps, self.path)


def single_row(layout: Layout, values: Any, root: str, time_ms: int | None = None) -> Rows:
    """One row of a one-row segment (profile, context)."""
    given = asdict(values)
    row = plain_row(layout, given, () if time_ms is None else (time_ms,))
    if row is not None:
        return row
    columns = {name: [value] for name, value in given.items()}
    stamps = None if time_ms is None else {"time_ms": [time_ms]}
    return checked_rows(layout, columns, 1, stamps, lambda name, row: f"{root}.{name}")


def checked_rows(
    layout: Layout,
    columns: Mapping[str, Any],
    count: int,
    stamps: Mapping[str, Any] | None,
    path: Path,
) -> Rows:
    """`rows_from_columns`, its refusal told as a path into the body."""
    try:
        return rows_from_columns(layout, columns, count, stamps)
    except InvalidFeature as invalid:
        raise refused_value(invalid, columns.get(invalid.feature, ()), path) from None


def _column(column: Any, root: str, name: str, kind: str) -> Any:
    """A column as NumPy reads it: as it was read, the bytes in place, or `as_array` of a list."""
    if isinstance(column, np.ndarray):
        return column
    if not isinstance(column, BinaryColumn):
        return as_array(column, kind)
    dtype = DTYPES[column.dtype]
    try:
        values = np.frombuffer(column.data, dtype)
    except ValueError:
        raise InvalidRequest(
            f"got {len(column.data)} bytes",
            path=f"{root}.{name}.data",
            expected=f"a multiple of {dtype.itemsize} bytes, for {column.dtype}",
        ) from None
    return values.astype(np.float32) if dtype.itemsize == 2 else values
