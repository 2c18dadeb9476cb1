"""Which features a model reads, and the bytes that carry them.

The schema alone drives the Redis record layout, request validation, packing, the engine's inputs
and the embeddings. Needs NumPy and pydantic only, so the gateway imports it without torch.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class Frozen(BaseModel):
    """Base of every saved setting: immutable, hashable, and refusing fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Identity(Frozen):
    """The number as it is, for one already of unit scale."""

    kind: Literal["identity"] = "identity"


class Log1p(Frozen):
    """sign(x) log(1 + |x|), for counts, prices and distances."""

    kind: Literal["log1p"] = "log1p"


class Standardize(Frozen):
    """(x - mean) / std."""

    kind: Literal["standardize"] = "standardize"
    mean: float
    std: float = Field(gt=0)


class Piecewise(Frozen):
    """Piecewise-linear encoding: one value a bin, 0 below it, 1 above it, linear inside.

    Source: Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning".
    """

    kind: Literal["piecewise"] = "piecewise"
    edges: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must strictly ascend")
        return self


Transform = Annotated[Identity | Log1p | Standardize | Piecewise, Field(discriminator="kind")]


class IdFeature(Frozen):
    """An unbounded int64 id, looked up in the id table `table` (its own name unless shared)."""

    kind: Literal["id"] = "id"
    name: Name
    table: Name = ""
    default: int | None = Field(default=None, description="value when absent; None: required")

    @model_validator(mode="before")
    @classmethod
    def _own_table(cls, data: object) -> object:
        if isinstance(data, dict) and not data.get("table"):
            return {**data, "table": data.get("name", "")}
        return data

    @property
    def values_name(self) -> str:
        """Name of the embeddings that it reads."""
        return self.table


class CategoryFeature(Frozen):
    """A small integer in [0, size); by custom 0 means unknown."""

    kind: Literal["category"] = "category"
    name: Name
    size: int = Field(ge=1, le=1 << 20)
    default: int | None = Field(default=None, ge=0, description="value when absent; None: required")

    @model_validator(mode="after")
    def _default_in_range(self) -> Self:
        if self.default is not None and self.default >= self.size:
            raise ValueError(f"default {self.default} is not below size {self.size}")
        return self

    @property
    def values_name(self) -> str:
        """Name of the embeddings that it reads: segments share those of one name and size."""
        return f"category_{self.name}_{self.size}"


class NumberFeature(Frozen):
    """A finite real number, carried raw; the model applies `transform`."""

    kind: Literal["number"] = "number"
    name: Name
    transform: Transform = Identity()
    dtype: Literal["float32", "float16"] = "float32"
    default: float | None = Field(default=None, description="value when absent; None: required")


Feature = Annotated[IdFeature | CategoryFeature | NumberFeature, Field(discriminator="kind")]


@dataclass(frozen=True)
class ArraySpec:
    """One 1-D array of a packed batch: `width` values a row, flattened row by row."""

    name: str
    dtype: np.dtype[Any]
    width: int
    rows: str
    """What a row is: profile, context (a request), lifelong, realtime, candidate or offset."""
    carrier: str = ""
    """Of the features it holds (see `Layout`); none where `pack` derives it."""


class Layout:
    """One segment's features by carrier, and the packed record that holds one row of them.

    A row is `(event_id, time_ms, ids, categories, numbers)`, the first two where the segment has
    them. In a one-row segment (`wide`: profile, context) categories ride among the ids: a few
    bytes a request, and any schema stays within 16 arrays (see `model_def.batch`).
    """

    def __init__(self, features: tuple[Feature, ...], *, wide: bool, stamps: tuple[str, ...] = ()):
        self.features = features
        categories = tuple(f for f in features if isinstance(f, CategoryFeature))
        self.ids: tuple[IdFeature | CategoryFeature, ...] = tuple(
            f
            for f in features
            if isinstance(f, IdFeature) or (wide and isinstance(f, CategoryFeature))
        )
        self.categories = () if wide else categories
        self.numbers = tuple(f for f in features if isinstance(f, NumberFeature))
        self.carriers: dict[str, tuple[Feature, ...]] = {
            "ids": self.ids,
            "categories": self.categories,
            "numbers": self.numbers,
        }
        self.names = frozenset(f.name for f in features)
        self.carried_names = {
            carrier: tuple(f.name for f in carried) for carrier, carried in self.carriers.items()
        }
        self.ranges = {name: _ranges(carried) for name, carried in self.carriers.items()}
        """Smallest and largest value of each carrier's features, int64 or float64 [features, 1]."""
        self.common = {
            name: (max(low.ravel().tolist(), default=0), min(high.ravel().tolist(), default=0))
            for name, (low, high) in self.ranges.items()
        }
        """Of each carrier the range that lies within those of all its features."""
        self.bounded = {
            name: not all(isinstance(f, IdFeature) for f in carried)
            for name, carried in self.carriers.items()
        }
        """Whether there are other values of a carrier's type than its features may have."""
        small = all(f.size <= 256 for f in categories)
        half = bool(self.numbers) and all(f.dtype == "float16" for f in self.numbers)
        self.category_dtype = np.dtype(np.uint8 if small else np.int32)
        self.number_dtype = np.dtype(np.float16 if half else np.float32)
        self.record = np.dtype(
            [
                *((stamp, "<i8") for stamp in stamps),
                ("ids", "<i8", (len(self.ids),)),
                ("categories", self.category_dtype, (len(self.categories),)),
                ("numbers", self.number_dtype, (len(self.numbers),)),
            ]
        )


def _ranges(features: tuple[Feature, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Smallest and largest value of each feature, [features, 1]."""
    int64 = np.iinfo(np.int64)
    bounds: list[tuple[float, float]] = []
    for feature in features:
        if isinstance(feature, NumberFeature):
            limit = float(np.finfo(feature.dtype).max)
            bounds.append((-limit, limit))
        elif isinstance(feature, CategoryFeature):
            bounds.append((0, feature.size - 1))
        else:
            bounds.append((int64.min, int64.max))
    numbers = any(isinstance(feature, NumberFeature) for feature in features)
    table = np.array(bounds, np.float64 if numbers else np.int64).reshape(-1, 2, 1)
    return table[:, 0], table[:, 1]


class FeatureSchema(Frozen):
    """The features of each token group, and how many tokens a sequence may have.

    `behaviour` describes both sequences (they share the same features, paper section 3.1);
    a candidate's token is made of `item` and `cross` features and the request's `context`.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
    profile: tuple[Feature, ...] = Field(min_length=1)
    behaviour: tuple[Feature, ...] = Field(min_length=1)
    item: tuple[Feature, ...] = Field(min_length=1)
    cross: tuple[Feature, ...] = ()
    context: tuple[Feature, ...] = ()
    lifelong_cap: int = Field(default=1000, ge=0, le=16384)
    realtime_cap: int = Field(default=100, ge=0, le=4096)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        groups = {
            "profile": self.profile,
            "behaviour": self.behaviour,
            "candidate": self.candidate,
            "context": self.context,
        }
        for group, features in groups.items():
            names = [f.name for f in features]
            if repeated := {n for n in names if names.count(n) > 1}:
                raise ValueError(f"{group}: repeated feature names {sorted(repeated)}")
        if not any(isinstance(f, IdFeature) and f.name == "item_id" for f in self.item):
            raise ValueError("item: an id feature named 'item_id' is expected")
        return self

    @property
    def candidate(self) -> tuple[Feature, ...]:
        """Features of a candidate: item features I, then cross features C."""
        return self.item + self.cross

    def without_cross(self) -> "FeatureSchema":
        """The schema less its cross features: an ablation, and what plain GRMs read."""
        # Not model_copy, which would copy the cached layouts too.
        return FeatureSchema.model_validate({**self.model_dump(), "cross": ()})

    @cached_property
    def item_place(self) -> int:
        """Where a candidate's ids hold its item_id."""
        return [feature.name for feature in self.layouts["candidate"].ids].index("item_id")

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Layout by segment: profile, lifelong, realtime, context, candidate, and `item` alone."""
        return {
            "profile": Layout(self.profile, wide=True),
            "lifelong": Layout(self.behaviour, wide=False, stamps=("time_ms",)),
            "realtime": Layout(self.behaviour, wide=False, stamps=("event_id", "time_ms")),
            "context": Layout(self.context, wide=True, stamps=("time_ms",)),
            "candidate": Layout(self.candidate, wide=False),
            "item": Layout(self.item, wide=False),
        }

    @cached_property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays of every packed batch, in buffer order: at most 16, then three offsets.

        `*_ids`, `*_categories`, `*_numbers`: features by carrier. The last number of a lifelong
        or real-time token and of a context row is its time: log1p of the seconds between it and
        the user's snapshot. `rt_visible`, `candidate_visible`: how many leading real-time tokens
        of its request a row sees. `context_candidates`: candidates of each context row, in order
        (one row a request in serving, several in a training window). `*_offsets`: int32 [B+1].
        """
        return tuple(self._arrays())

    def _arrays(self) -> Iterator[ArraySpec]:
        for segment in ("profile", "context", "lifelong", "realtime", "candidate"):
            layout = self.layouts[segment]
            times = int("time_ms" in (layout.record.names or ()))
            for carrier, dtype, width in (
                ("ids", np.dtype(np.int64), len(layout.ids)),
                ("categories", layout.category_dtype, len(layout.categories)),
                ("numbers", layout.number_dtype, len(layout.numbers) + times),
            ):
                if width:
                    yield ArraySpec(f"{segment}_{carrier}", dtype, width, segment, carrier)
        visible = np.dtype(np.uint8 if self.realtime_cap <= 255 else np.int32)
        int32 = np.dtype(np.int32)
        yield ArraySpec("rt_visible", visible, 1, "realtime")
        yield ArraySpec("candidate_visible", visible, 1, "candidate")
        yield ArraySpec("context_candidates", int32, 1, "context")
        for segment in ("lifelong", "rt", "candidate"):
            yield ArraySpec(f"{segment}_offsets", int32, 1, "offset")

    @cached_property
    def id_tables(self) -> tuple[str, ...]:
        """Names of the id tables, sorted; features of one table share its rows."""
        groups = (self.profile, self.behaviour, self.candidate, self.context)
        return tuple(sorted({f.table for g in groups for f in g if isinstance(f, IdFeature)}))

    @property
    def taken(self) -> object:
        """What requests and stored records a model of this schema takes: models of equal ones may
        replace each other. Transforms do not matter."""
        sizes = [
            (segment, feature.name, feature.size)
            for segment, layout in sorted(self.layouts.items())
            for feature in layout.features
            if isinstance(feature, CategoryFeature)
        ]
        return self.name, self.layout_hash, self.lifelong_cap, self.realtime_cap, sizes

    @cached_property
    def layout_hash(self) -> int:
        """64-bit hash of every record's layout: equal hashes mean bytes mean the same.

        Transforms and category sizes of one dtype do not change it: a retrained model reads the
        records that its predecessor read.
        """
        text = json.dumps(
            [
                (segment, [(f.kind, f.name) for f in layout.features], str(layout.record))
                for segment, layout in sorted(self.layouts.items())
            ]
        )
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
