"""Columns checked all at once are accepted, refused and packed as one by one."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_def import rows
from model_def.rows import InvalidFeature, rows_from_columns
from model_def.schema import CategoryFeature, IdFeature, Layout, NumberFeature

LAYOUT = Layout(
    (
        IdFeature(name="item"),
        CategoryFeature(name="small", size=4),
        CategoryFeature(name="large", size=256),
        NumberFeature(name="half", dtype="float16"),
        NumberFeature(name="single", default=2.5),
    ),
    wide=False,
)
EDGES = (0, 1, 3, 4, 255, 256, -1, 65504, 65520, 1 << 24, (1 << 24) + 1, (1 << 62) + 1, 1 << 63)
NUMBERS = (0.1, -0.0, 65504.0, 65520.0, 3.4028234e38, 3.4028236e38, 1e300, np.nan, -np.inf)


@st.composite
def arrays(draw: st.DrawFn) -> NDArray[Any]:
    """Two values of any dtype that a body or a log may hold, many at an edge."""
    dtype = np.dtype(draw(st.sampled_from(["u1", "i4", "i8", "u8", "f2", "f4", "f8", "bool"])))
    of = NUMBERS if dtype.kind == "f" else EDGES
    with np.errstate(all="ignore"):
        return np.array(draw(st.lists(st.sampled_from(of), min_size=2, max_size=2))).astype(dtype)


@given(st.fixed_dictionaries({name: arrays() for name in LAYOUT.names}), st.booleans())
def test_all_at_once_decides_as_one_by_one(columns: dict[str, Any], whole: bool) -> None:
    """The same rows bit for bit, or the same complaint."""
    if not whole:
        del columns["single"]

    def outcome() -> bytes | str:
        try:
            return rows_from_columns(LAYOUT, columns, 2).tobytes()
        except InvalidFeature as invalid:
            return str(invalid)

    at_once = outcome()
    together = rows._checked_together
    rows._checked_together = lambda *_: None
    try:
        assert at_once == outcome()
    finally:
        rows._checked_together = together


ODD = (None, True, "1", [1], *EDGES, *NUMBERS)


@given(
    st.dictionaries(st.sampled_from(sorted(LAYOUT.names)), st.sampled_from(ODD)),
    st.booleans(),
    st.integers(0, 1 << 62),
)
def test_a_plain_row_is_the_row_of_its_columns(
    odd: dict[str, Any], wide: bool, time_ms: int
) -> None:
    """Whatever is taken as plain gives the same bytes as a row of columns; the rest is left."""
    layout = Layout(LAYOUT.features, wide=wide, stamps=("time_ms",))
    good = {"item": 7, "small": 3, "large": 255, "half": 0.1, "single": -0.0}
    assert rows.plain_row(layout, good, (time_ms,)) is not None
    values = good | odd
    with np.errstate(all="ignore"):
        row = rows.plain_row(layout, values, (time_ms,))
        if row is not None:
            columns = {name: [value] for name, value in values.items()}
            expected = rows_from_columns(layout, columns, 1, {"time_ms": [time_ms]})
            assert row.tobytes() == expected.tobytes()
