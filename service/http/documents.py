"""The bodies of `service.http.wire`, said again in pydantic: what OpenAPI shows.

A test holds the two to accept and refuse the same. Binary columns of MessagePack are described in
words: JSON has no bytes.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, create_model

from model_def.schema import CategoryFeature, Feature, FeatureSchema, NumberFeature
from service.http.replies import Document
from service.http.validate import LONGEST_LIFELONG, Limits

Int64 = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)]
RequestId = Annotated[str, Field(min_length=1, max_length=128)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Time = Annotated[int, Field(ge=0, description="milliseconds since 1970")]
Scene = Annotated[str, Field(max_length=64)]


class LabelDocument(Document):
    """What became of an item that a ranking request was answered with."""

    request_id: RequestId
    item_id: Int64
    action: Literal["exposure", "click", "order"]


class Documents:
    """Pydantic models of every body, for one schema; `prefix` makes their names differ."""

    def __init__(self, schema: FeatureSchema, limits: Limits, prefix: str):
        self._prefix = prefix
        item = [f for f in schema.item if f.name != "item_id"]
        count: Any = {"min_length": 1, "max_length": limits.max_candidates}
        row = self._model(
            "Candidate",
            item_id=(Int64, ...),
            features=(self._features("CandidateFeatures", item, schema.cross), ...),
            recall_score=_optional(float),
        )
        columns = self._model(
            "CandidateColumns",
            item_id=(Annotated[list[Int64], Field(**count)], ...),
            features=(self._features("CandidateFeatureColumns", item, schema.cross, True), ...),
            recall_score=_optional(list[float]),
        )
        context = self._features("Context", (), schema.context)
        needed = any(f.default is None for f in schema.context)
        self.rank = self._model(
            "RankRequest",
            user_id=(Name, ...),
            candidates=(Annotated[list[row], Field(**count)] | columns, ...),  # type: ignore[valid-type]
            context=(context, ...) if needed else _optional(context),
            request_id=(RequestId | None, None),
            scene=(Scene | None, None),
            timestamp=(Time | None, Field(None, description="milliseconds since 1970; now")),
            deadline_ms=(Annotated[int, Field(ge=1, le=limits.max_deadline_ms)] | None, None),
            top_k=(Annotated[int, Field(ge=1, le=limits.max_candidates)] | None, None),
        )
        event = self._model(
            "Event",
            event_id=(Name, ...),
            timestamp=(Time, ...),
            features=(self._features("EventFeatures", (), schema.behaviour) | None, None),
            label=(LabelDocument | None, None),
        )
        self.events = self._model(
            "Events",
            user_id=(Name, ...),
            events=(
                Annotated[
                    list[event],  # type: ignore[valid-type]
                    Field(min_length=1, max_length=limits.max_events),
                ],
                ...,
            ),
            scene=(Scene | None, None),
        )
        past = self._model(
            "Behaviour",
            timestamp=(Time, ...),
            features=(self._features("BehaviourFeatures", (), schema.behaviour), ...),
        )
        past_columns = self._model(
            "BehaviourColumns",
            timestamp=(Annotated[list[Time], Field(max_length=LONGEST_LIFELONG)], ...),
            features=(self._features("BehaviourFeatureColumns", (), schema.behaviour, True), ...),
        )
        longest = Field(max_length=LONGEST_LIFELONG)
        self.user = self._model(
            "User",
            snapshot_ms=(Time, ...),
            profile=(self._features("Profile", (), schema.profile), ...),
            lifelong=(Annotated[list[past], longest] | past_columns, ...),  # type: ignore[valid-type]
            scene=(Scene | None, None),
        )

    def _features(
        self,
        name: str,
        optional: Iterable[Feature],
        others: Iterable[Feature],
        columns: bool = False,
    ) -> type[BaseModel]:
        fields = {}
        for feature in optional:
            fields[feature.name] = _optional(_type(feature, columns))
        for feature in others:
            kind = _type(feature, columns)
            fields[feature.name] = (kind, ...) if feature.default is None else _optional(kind)
        return self._model(name, **fields)

    def _model(self, name: str, **fields: Any) -> type[BaseModel]:
        """A strict model; fields go by alias, as a feature may be named like a method."""
        aliased: dict[str, Any] = {
            f"field_{i}": (Annotated[kind, Field(alias=field)], default)
            for i, (field, (kind, default)) in enumerate(fields.items())
        }
        model: type[BaseModel] = create_model(f"{self._prefix}{name}", __base__=Document, **aliased)
        return model


def _type(feature: Feature, column: bool) -> Any:
    kind: Any = Int64
    if isinstance(feature, CategoryFeature):
        kind = Annotated[int, Field(ge=0, lt=feature.size)]
    elif isinstance(feature, NumberFeature):
        limit = float(np.finfo(feature.dtype).max)
        kind = Annotated[float, Field(ge=-limit, le=limit)]
    return list[kind] if column else kind


def _optional(kind: Any) -> tuple[Any, Any]:
    """May be left out, and is not null when given."""
    return kind, Field(default=None, json_schema_extra=_no_default)


def _no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)
