"""What a body may look like, as typed decoders made from a feature schema.

The decoders check structure, names and types in C while they read, and give columns or rows of
plain numbers: no object of ours per value. Ranges, lengths and whatever spans several fields is
checked on arrays (`service.http.validate`). `service.http.documents` says the same in pydantic.

A table (candidates, a lifelong sequence) is a list of objects, or one object of columns. In
MessagePack a numeric column may be `{"dtype": "<f4", "data": bin}`: little-endian values that
are used as they lie.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType, defstruct, field

from model_def.schema import Feature, FeatureSchema, NumberFeature
from service.http.json_columns import JsonColumns
from service.http.refusals import refuse_body

BinaryType = Literal["<f2", "<f4", "<f8", "u1", "<i4", "<i8"]
RequestId = Annotated[str, Meta(min_length=1, max_length=128)]
UserId = Annotated[str, Meta(min_length=1, max_length=256)]
EventId = Annotated[str, Meta(min_length=1, max_length=256)]
Scene = Annotated[str, Meta(max_length=64)]
Formats = Literal["json", "msgpack"]


class BinaryColumn(Struct, forbid_unknown_fields=True):
    """A column as bytes; `dtype` in NumPy's notation."""

    dtype: BinaryType
    data: memoryview


class ScenePeek(Struct):
    """Only the scene of a body, to learn which schema the rest follows."""

    scene: str | None = None


Int64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Label(Struct, forbid_unknown_fields=True, gc=False):
    """What became of an item that a ranking request was answered with."""

    request_id: RequestId
    item_id: Int64
    action: Literal["exposure", "click", "order"]


class Wire:
    """Decoders of every body, for one schema."""

    def __init__(self, schema: FeatureSchema):
        self._schema = schema
        self.rank = self._rank()
        self.events = self._events()
        self.user = self._user()

    def _rank(self) -> "Decoders":
        """`POST /v1/rank`."""

        def candidates(column: Any, id_column: Any) -> Any:
            item = [f for f in self._schema.item if f.name != "item_id"]
            row = _struct(
                "Candidate",
                [
                    ("item_id", int),
                    ("features", _values(item, self._schema.cross)),
                    ("recall_score", float | UnsetType, UNSET),
                ],
            )
            columns = _struct(
                "CandidateColumns",
                [
                    ("item_id", id_column),
                    ("features", _values(item, self._schema.cross, column)),
                    ("recall_score", column(float) | UnsetType, UNSET),
                ],
            )
            return list[row] | columns  # type: ignore[valid-type]

        def body(column: Any, id_column: Any) -> Any:
            context = _values((), self._schema.context)
            needed = any(f.default is None for f in self._schema.context)
            return _struct(
                "Rank",
                [
                    ("user_id", UserId),
                    ("candidates", candidates(column, id_column)),
                    ("context", context)
                    if needed
                    else ("context", context, field(default_factory=context)),
                    ("request_id", RequestId | None, None),
                    ("scene", Scene | None, None),
                    ("timestamp", int | None, None),
                    ("deadline_ms", int | None, None),
                    ("top_k", int | None, None),
                ],
            )

        return Decoders(body)

    def _events(self) -> "Decoders":
        """`POST /v1/events`."""
        event = _struct(
            "Event",
            [
                ("event_id", EventId),
                ("timestamp", int),
                ("features", _values((), self._schema.behaviour) | None, None),
                ("label", Label | None, None),
            ],
        )
        fields = [
            ("user_id", UserId),
            ("events", list[event]),  # type: ignore[valid-type]
            ("scene", Scene | None, None),
        ]
        return Decoders(lambda column, id_column: _struct("Events", fields))

    def _user(self) -> "Decoders":
        """`PUT /v1/users/{id}`."""

        def body(column: Any, id_column: Any) -> Any:
            behaviour = self._schema.behaviour
            row = _struct("Behaviour", [("timestamp", int), ("features", _values((), behaviour))])
            columns = _struct(
                "BehaviourColumns",
                [("timestamp", id_column), ("features", _values((), behaviour, column))],
            )
            return _struct(
                "User",
                [
                    ("snapshot_ms", int),
                    ("profile", _values((), self._schema.profile)),
                    ("lifelong", list[row] | columns),  # type: ignore[valid-type]
                    ("scene", Scene | None, None),
                ],
            )

        return Decoders(body)


class Decoders:
    """One body in both formats. `make(column, id_column)` gives its type, where `column(t)` is
    the type of a column of t."""

    def __init__(self, make: Any):
        plain = make(_list_of, list[int])
        binary = make(lambda t: _list_of(t) | BinaryColumn, list[int] | BinaryColumn)
        self._columns = JsonColumns(plain, make(lambda t: np.ndarray, np.ndarray))
        self._decoders: dict[str, Any] = {
            "json": msgspec.json.Decoder(plain),
            "msgpack": msgspec.msgpack.Decoder(binary),
        }

    def decode(self, body: bytes, format: Formats) -> Any:
        """The body as structs; raises InvalidRequest."""
        if format == "json" and (read := self._columns.read(body)) is not None:
            return read
        try:
            return self._decoders[format].decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            refuse_body(error)


_PEEK: dict[str, Any] = {
    "json": msgspec.json.Decoder(ScenePeek),
    "msgpack": msgspec.msgpack.Decoder(ScenePeek),
}


def peek_scene(body: bytes, format: Formats) -> str | None:
    """The scene that a body names; raises InvalidRequest where it cannot be read."""
    try:
        scene: str | None = _PEEK[format].decode(body).scene
        return scene
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refuse_body(error)


_DEADLINE = re.compile(rb'"deadline_ms"\s*:\s*(\d{1,9})[\s,}]')
_PACKED_DEADLINE = re.compile(
    rb"\xabdeadline_ms(?:([\0-\x7f])|\xcc(.)|\xcd(..)|\xce(....))", re.DOTALL
)


def peek_deadline_ms(body: bytes, format: Formats) -> int | None:
    """The deadline that a body names, before it is decoded: enough to order a queue by."""
    if format == "json":
        found = _DEADLINE.search(body)
        return int(found[1]) if found else None
    packed = _PACKED_DEADLINE.search(body)
    return int.from_bytes(packed[packed.lastindex or 0], "big") if packed else None


def number_type(feature: Feature) -> Any:
    """The Python type that a feature's value decodes to."""
    return float if isinstance(feature, NumberFeature) else int


def _values(optional: Any, others: Any, column: Any = None) -> Any:
    """Struct of feature values, or of columns: `optional` ones, and others by their defaults.

    What is left out is UNSET, but for a single value with a default, which is that default.
    """
    fields: list[Any] = []
    for feature in (*optional, *others):
        kind = number_type(feature)
        if column is not None:
            kind = column(kind)
        if feature in optional or (feature.default is not None and column is not None):
            fields.append((feature.name, kind | UnsetType, UNSET))
        elif feature.default is not None:
            fields.append((feature.name, kind, feature.default))
        else:
            fields.append((feature.name, kind))
    return _struct("Features", fields)


def _list_of(kind: Any) -> Any:
    return list[kind]


def _struct(name: str, fields: Any) -> Any:
    return defstruct(
        name, fields, forbid_unknown_fields=True, gc=False, kw_only=True, module=__name__
    )
