"""Columns of feature values -> packed rows of a segment, with every value checked.

The one place that decides whether a value fits its feature: requests, events, profiles and
training logs all pass here, so what serving refuses training refuses too, in the same words.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_def.batch import Rows
from model_def.schema import CategoryFeature, Feature, Layout, NumberFeature


class InvalidFeature(ValueError):
    """A value that does not fit the schema: `feature`, the row where known, and what was expected.

    `row` is None when the whole column is at fault.
    """

    def __init__(self, feature: str, expected: str, row: int | None = None):
        self.feature, self.expected, self.row = feature, expected, row
        where = feature if row is None else f"{feature}[{row}]"
        super().__init__(f"{where}: {expected}")


def rows_from_columns(
    layout: Layout,
    columns: Mapping[str, Any],
    count: int,
    stamps: Mapping[str, Any] | None = None,
) -> Rows:
    """Pack `count` rows from columns by feature name; raises InvalidFeature.

    A column is anything NumPy reads as a 1-D array of `count` numbers; arrays are checked all at
    once. A feature without a column takes its default; one without a default is required.
    `stamps` fills `time_ms` and `event_id`. Unknown names are refused.
    """
    if not columns.keys() <= layout.names:
        name = next(name for name in columns if name not in layout.names)
        raise InvalidFeature(name, f"unknown feature; expected one of {sorted(layout.names)}")
    rows: Rows = np.zeros(count, layout.record)
    for stamp, values in (stamps or {}).items():
        rows[stamp] = values
    for carrier, features in layout.carriers.items():
        if not features:
            continue
        out = rows[carrier]
        together = _checked_together(layout, carrier, columns, count)
        if together is not None:
            out[:] = together.T
            continue
        for position, feature in enumerate(features):
            if feature.name in columns:
                out[:, position] = checked_column(feature, columns[feature.name], count)
            elif feature.default is not None:
                out[:, position] = feature.default
            else:
                raise InvalidFeature(feature.name, "missing; the feature is required")
    return rows


def plain_row(layout: Layout, values: Mapping[str, Any], stamps: tuple[int, ...]) -> Rows | None:
    """The one row that `rows_from_columns` would make, by far sooner; None unless every feature has
    a value of Python's own that is plainly in range. `stamps` in the record's order."""
    row: list[Any] = [*stamps]
    for kind, limits in _limits(layout):
        carried = [values.get(name) for name, _, _ in limits]
        for value, (_, low, high) in zip(carried, limits, strict=True):
            if value.__class__ is not kind or not low <= value <= high:
                return None
        row.append(carried)
    return np.array([tuple(row)], layout.record)


@cache
def _limits(layout: Layout) -> list[tuple[type, list[tuple[str, Any, Any]]]]:
    """Of each carrier the type of its values, and (name, smallest, largest) of its features."""
    limits: list[tuple[type, list[tuple[str, Any, Any]]]] = []
    for carrier, names in layout.carried_names.items():
        low, high = (bound.ravel().tolist() for bound in layout.ranges[carrier])
        kind: type = float if carrier == "numbers" else int
        limits.append((kind, list(zip(names, low, high, strict=True))))
    return limits


def _checked_together(
    layout: Layout, carrier: str, columns: Mapping[str, Any], count: int
) -> NDArray[Any] | None:
    """The carrier's columns [features, count], all in range; None where one by one has to decide.

    It decides nothing that `checked_column` would decide otherwise: only whole arrays that widen
    without loss come through here, and whatever does not fit is left for it to name.
    """
    features = layout.carriers[carrier]
    low, high = layout.ranges[carrier]
    given: list[Any] = [columns.get(name) for name in layout.carried_names[carrier]]
    for position, column in enumerate(given):
        if column is None and features[position].default is not None:
            given[position] = np.full(count, features[position].default, low.dtype)
        elif column.__class__ is not np.ndarray or column.shape != (count,):
            return None
    dtypes = {column.dtype for column in given}
    if not all(_widens(dtype, low.dtype) for dtype in dtypes):
        return None
    joined = np.concatenate(given) if len(dtypes) == 1 else np.concatenate(given, dtype=low.dtype)
    together: NDArray[Any] = joined.reshape(len(features), count)
    if count and layout.bounded[carrier] and not _within(joined, layout.common[carrier]):
        least, greatest = np.minimum.reduce(together, axis=1), np.maximum.reduce(together, axis=1)
        if not ((least >= low[:, 0]) & (greatest <= high[:, 0])).all():
            return None
    return together


def _within(values: NDArray[Any], bounds: tuple[float, float]) -> bool:
    """Whether all are; NaN is the least and the greatest, and in no range."""
    least, greatest = np.minimum.reduce(values).item(), np.maximum.reduce(values).item()
    return bool(bounds[0] <= least and greatest <= bounds[1])


@cache
def _widens(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether every number of `source` is one of `target` (int64 or float64)."""
    exact = source.kind == target.kind or source.itemsize < target.itemsize
    return source.kind in "iuf" and exact and np.can_cast(source, target)


def checked_column(feature: Feature, column: Any, count: int) -> NDArray[Any]:
    """`column` as int64 [count] or float64 [count], in the feature's range; or InvalidFeature."""
    whole = not isinstance(feature, NumberFeature)
    expected = "integers" if whole else "finite numbers"
    try:
        values = np.asarray(column)
    except ValueError:  # ragged nesting
        raise InvalidFeature(feature.name, f"expected a flat list of {expected}") from None
    if values.ndim != 1:
        raise InvalidFeature(feature.name, f"expected a flat list of {expected}")
    if len(values) != count:
        raise InvalidFeature(feature.name, f"expected {count} values, got {len(values)}")
    if count == 0:
        return values.astype(np.int64 if whole else np.float64)
    if values.dtype.kind not in ("iu" if whole else "iuf"):
        bad = _first_odd_type(column, whole)
        raise InvalidFeature(feature.name, f"expected {expected}, got {bad[1]}", bad[0])
    good, expected = fits(feature, values)
    if not good.all():
        raise InvalidFeature(feature.name, f"expected {expected}", int(np.argmin(good)))
    return values


def fits(feature: Feature, values: NDArray[Any]) -> tuple[NDArray[np.bool_], str]:
    """Which numeric `values` are in the feature's range, and what that range is, in words."""
    if isinstance(feature, CategoryFeature):
        return (values >= 0) & (values < feature.size), f"0 <= value < {feature.size}"
    if isinstance(feature, NumberFeature):
        limit = float(np.finfo(feature.dtype).max)
        # In float64, so that a narrow column is not compared with a limit beyond its own range.
        return np.abs(values, dtype=np.float64) <= limit, f"a finite {feature.dtype}"
    return values < (1 << 63), "integers below 2^63"


def columns_from_rows(layout: Layout, rows: Rows) -> dict[str, NDArray[Any]]:
    """The columns by feature name that `rows_from_columns` made `rows` of; stamps left out."""
    return {
        feature.name: rows[carrier][:, position]
        for carrier, features in layout.carriers.items()
        for position, feature in enumerate(features)
    }


def empty_rows(layout: Layout, count: int = 0) -> Rows:
    """`count` rows of defaults (0 where none is given): what an unknown user's features are."""
    columns = {f.name: [f.default or 0] * count for f in layout.features}
    return rows_from_columns(layout, columns, count)


def _first_odd_type(column: Any, whole: bool) -> tuple[int | None, str]:
    """Row and type name of the first value that is no number, for the message only."""
    for row, value in enumerate(column):
        if isinstance(value, bool) or not isinstance(value, int | (int if whole else float)):
            return row, type(value).__name__
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            return row, "an integer beyond 64 bits"
    return None, f"dtype {np.asarray(column).dtype}"
