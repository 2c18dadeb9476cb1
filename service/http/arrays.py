"""Python's numbers, as a decoder leaves them -> arrays, without an object of ours for a value.

`struct` writes numbers a third as fast again as NumPy reads a list of them, and as exactly: it
refuses what is no float or no 64-bit integer. Such a sequence stays as it is, for
`model_def.rows.checked_column` to name the value at fault.
"""

import struct
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import starmap
from typing import Any, get_args

import numpy as np
from msgspec import Struct
from msgspec.structs import fields

LENGTHS = 1024
"""Formats kept, one for each length of a column seen lately."""


@cache
def number_kinds(kind: type[Struct]) -> dict[str, str]:
    """By field of a struct of values or of columns: "d" where numbers decode to float, else "q"."""
    return {f.encode_name: "d" if _holds_float(f.type) else "q" for f in fields(kind)}


def _holds_float(kind: Any) -> bool:
    return kind is float or any(map(_holds_float, get_args(kind)))


def as_array(values: Sequence[Any], kind: str) -> Any:
    """Floats ("d") or integers ("q") as an array, or unchanged where one of them is neither."""
    try:
        return np.frombuffer(_packer(kind, len(values))(*values), kind)
    except struct.error:
        return values


def rows_as_columns(kind: type[Struct], rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Columns by name of rows of feature values (`astuple` of a `kind`): views of one array.

    Where a value is left out or beyond 64 bits, columns are sequences of Python's own values.
    """
    names = kind.__struct_fields__
    if not names:
        return {}
    pack, record = _row_packer(kind)
    try:
        table = np.frombuffer(b"".join(starmap(pack, rows)), record)
    except struct.error:
        return dict(zip(names, zip(*rows, strict=True), strict=True))
    return {name: table[name] for name in names}


@lru_cache(LENGTHS)
def _packer(kind: str, count: int) -> Callable[..., bytes]:
    return struct.Struct(f"{count}{kind}").pack


@cache
def _row_packer(kind: type[Struct]) -> tuple[Callable[..., bytes], np.dtype[Any]]:
    kinds = number_kinds(kind)
    return struct.Struct("".join(kinds.values())).pack, np.dtype(list(kinds.items()))
