"""JSON bodies of columns, read without a Python object for a number: simdjson parses a document and
gives a flat list of numbers as a buffer.

It only ever does what the typed decoder of the same body would, sooner. Whatever is unusual (a name
twice, a list within a list, an integer beyond 64 bits, anything that is wrong) is left to that one,
which then decides and names what is at fault. So is a body of rows, for which simdjson has no such
way, and every body where simdjson is not installed.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, get_args, get_origin

import msgspec
import numpy as np
from msgspec import Struct

simdjson: Any = import_module("simdjson") if find_spec("simdjson") else None
"""None for Python 3.14, of which there is no wheel yet."""

MOST_BYTES = 1 << 20
"""Of a body that is read this way: simdjson keeps some 15 bytes for each of the longest."""

Kinds = Mapping[str, Any]
"""What fields hold: "d" for a list of floats, "q" of integers, fields again for an object, else
None."""

_BUFFERS = {"d": "d", "q": "i"}
"""simdjson's letters."""

_UNUSUAL = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""Raised by simdjson and msgspec for what they do not take, and here."""


class JsonColumns:
    """Reads bodies of one type."""

    def __init__(self, plain: type[Struct], arrays: type[Struct]):
        """`plain` is the body's type, `arrays` the same with arrays for columns."""
        self._kinds, self._arrays = _kinds(plain), arrays
        self._parser = None if simdjson is None else simdjson.Parser(max_capacity=MOST_BYTES)

    def read(self, body: bytes) -> Any:
        """The body as an `arrays`; None where the typed decoder decides."""
        lists = len(body) - len(body.replace(b"[", b""))  # bytes.count takes eight times as long
        # Of rows there is one list; simdjson would skip a byte order mark.
        if self._parser is None or lists < 2 or body[:1] != b"{":
            return None
        try:
            values, columns = _values(self._parser.parse(body), self._kinds)
            if columns != lists:  # one lies within another, or in a text
                return None
            return msgspec.convert(values, self._arrays)
        except _UNUSUAL:
            return None


def _values(found: Any, kinds: Kinds) -> tuple[dict[str, Any], int]:
    """An object's values, columns as arrays, and how many of these there are."""
    if len(found) > len(kinds):
        raise LookupError("unknown names, or the same again")
    values: dict[str, Any] = {}
    columns = 0
    for name in found:
        value, kind = found[name], kinds[name]
        if value.__class__ is simdjson.Array:
            value = np.frombuffer(value.as_buffer(of_type=_BUFFERS[kind]), kind)
            columns += 1
        elif value.__class__ is simdjson.Object:
            value, inner = _values(value, kind)
            columns += inner
        values[name] = value
    if len(values) != len(found):
        raise LookupError("a name twice")
    return values, columns


def _kinds(struct: type[Struct]) -> Kinds:
    kinds: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        kinds[field.encode_name] = None
        for kind in (field.type, *get_args(field.type)):
            if isinstance(kind, type) and issubclass(kind, Struct):
                kinds[field.encode_name] = _kinds(kind)
            elif get_origin(kind) is list and get_args(kind)[0] in (int, float):
                kinds[field.encode_name] = "d" if get_args(kind)[0] is float else "q"
    return kinds
