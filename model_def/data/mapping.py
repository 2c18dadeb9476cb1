"""A mapping file: which columns of a user's own tables are which features.

TOML, read into `Mapping`. `complete_journey.toml` beside this module is an example with every
kind of feature. Knows nothing of how tables are read or features computed.
"""

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from model_def.schema import Frozen, Name


class MappingError(ValueError):
    """A mapping, or a table that it names, cannot be used; the message says where and why."""


class IdColumn(Frozen):
    """An id: integers are kept, texts hashed to int64 by BLAKE2b. Columns share a `table`."""

    id: str
    table: Name | None = None


class CategoryColumn(Frozen):
    """The `most` most frequent values of a column as 1, 2, ...; 0 is absent, rare or unknown."""

    category: str
    most: int = Field(default=4096, ge=1, lt=1 << 20)


class ClockColumn(Frozen):
    """A request's hour of day or day of week, from its time."""

    clock: Literal["hour", "weekday"]


class NumberColumn(Frozen):
    """A column of numbers; an empty value becomes `default`, or rejects its row without one."""

    number: str
    default: float | None = None
    bins: int = Field(default=16, ge=1, le=256)


class PastNumber(Frozen):
    """A number computed from interactions strictly earlier than the request (or snapshot).

    `by` names what an interaction must share with the row: `user`, `item_id`, another feature of
    [item] or [context]; several must all match. Within the last `days`, or ever.

    - count: how many.
    - recency: days since the last; NEVER_DAYS if there was none.
    - ratio: sum of `of[0]` over sum of `of[1]`; -1 where there is no such interaction.
    - lift: how over-represented `by` is within its first name: share of the user's purchases that
      are of this type over the share of everybody's, drawn towards 1 by PRIOR interactions.
    - trend: the count within `days` over what the long-run rate would give, both plus 1.
    """

    past: Literal["count", "recency", "ratio", "lift", "trend"]
    by: tuple[Name, ...] = Field(min_length=1)
    of: tuple[str, str] | None = None
    days: float | None = Field(default=None, gt=0)
    bins: int = Field(default=16, ge=1, le=256)

    @model_validator(mode="after")
    def _arguments(self) -> Self:
        if (self.of is not None) != (self.past == "ratio"):
            raise ValueError("'of' (two number columns) belongs to past = 'ratio', and only there")
        if self.past == "lift" and len(self.by) < 2:
            raise ValueError("past = 'lift' compares within the first of 'by': name two or more")
        if self.past == "trend" and self.days is None:
            raise ValueError("past = 'trend' needs 'days'")
        if self.past in ("recency", "lift") and self.days is not None:
            raise ValueError(f"past = {self.past!r} takes no 'days'")
        return self


def _kind(value: Any) -> str | None:
    """Which kind of feature a table of the mapping is, by the key that names its source."""
    keys = value if isinstance(value, dict) else vars(value)
    return next((k for k in ("id", "category", "clock", "number", "past") if k in keys), None)


IdSource = Annotated[IdColumn, Tag("id")]
CategorySource = Annotated[CategoryColumn, Tag("category")]
ClockSource = Annotated[ClockColumn, Tag("clock")]
NumberSource = Annotated[NumberColumn, Tag("number")]
PastSource = Annotated[PastNumber, Tag("past")]
ColumnSource = Annotated[IdSource | CategorySource | NumberSource, Discriminator(_kind)]
ContextSource = Annotated[IdSource | CategorySource | ClockSource, Discriminator(_kind)]
ProfileSource = Annotated[
    IdSource | CategorySource | NumberSource | PastSource, Discriminator(_kind)
]


class Interactions(Frozen):
    """The table of what users did; the rows of one `request` were one occasion (a basket)."""

    table: str
    user: str
    item: str
    time: str = Field(description="timestamps (UTC unless they say), or integers: ms")
    request: str


class Side(Frozen):
    """A table with one row a user or an item."""

    table: str
    key: str


class Negatives(Frozen):
    """Candidates that were not chosen, drawn in proportion to popularity before the request.

    Each is the item of a random earlier interaction; those of the request itself and repeats are
    drawn again.
    """

    count: int = Field(default=50, ge=1, le=4096)
    seed: int = Field(default=0, ge=0)
    new_items: Literal["drop", "keep"] = Field(
        default="drop",
        description="what becomes of a positive that nobody chose before: no negative can be like "
        "it, so a model learns that novelty means positive; 'drop' leaves it out of its request",
    )


class Mapping(Frozen):
    """A whole mapping file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    scene: str = "default"
    requests_from: datetime = Field(description="earlier interactions are history only")
    train_until: datetime = Field(description="number bins and category values learn before it")
    snapshot_days: int = Field(default=28, ge=1, description="how often lifelong sequences freeze")
    lifelong_cap: int = Field(default=1000, ge=0, le=16384)
    realtime_cap: int = Field(default=100, ge=0, le=4096)
    interactions: Interactions
    items: Side | None = None
    users: Side | None = None
    negatives: Negatives = Negatives()
    profile: dict[Name, ProfileSource] = Field(min_length=1)
    item: dict[Name, ColumnSource] = Field(default={})
    event: dict[Name, Annotated[NumberSource | CategorySource, Discriminator(_kind)]] = Field(
        default={}
    )
    context: dict[Name, ContextSource] = Field(default={})
    cross: dict[Name, PastNumber] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        reserved = {"user", "item_id"} & {*self.item, *self.context, *self.event}
        if reserved:
            raise ValueError(f"{sorted(reserved)}: reserved; they come from [interactions]")
        discrete = {n for n, s in self.item.items() if not isinstance(s, NumberColumn)}
        keys = {"user", "item_id", *self.context, *discrete}
        for name, source in (*self.profile.items(), *self.cross.items()):
            known = {"user"} if name in self.profile else keys
            if isinstance(source, PastNumber) and (unknown := {*source.by} - known):
                raise ValueError(f"{name}.by: {sorted(unknown)}; expected of {sorted(known)}")
        for name, side in (*self.profile.items(), *self.item.items()):
            if isinstance(side, NumberColumn) and side.default is None:
                raise ValueError(f"{name}: a default is expected, for those not in the table")
        if self.item and self.items is None:
            raise ValueError("items: the table of the [item] features is expected")
        if self.users is None and any(not isinstance(s, PastNumber) for s in self.profile.values()):
            raise ValueError("users: the table of the [profile] features is expected")
        return self


def read_mapping(path: Path) -> Mapping:
    """Read and check a mapping file; MappingError names the faulty entry."""
    try:
        return Mapping.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        raise MappingError(f"{path}: not found; expected a mapping file") from None
    except tomllib.TOMLDecodeError as error:
        raise MappingError(f"{path}: {error}") from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise MappingError(f"{path}: " + "; ".join(faults)) from error


def milliseconds(at: datetime) -> int:
    """Ms since the epoch; a time without a zone is UTC."""
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
