"""What requests are made of: users, contexts, candidates and events, without any package of ours.

Either a *traffic file*, JSON lines of one key each,

    {"rank": BODY}        a `POST /v1/rank` body with its candidates in columns
    {"user_id": "u1"}     a user that the service knows, the most active first
    {"event": FEATURES}   features of one behaviour event

or a *description*, one JSON document that gives each feature a kind and a range; its values are
uniform noise, which costs a server the same and means nothing.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.request import Candidates

MARKETPLACE = Path(__file__).with_name("marketplace.json")
"""Describes the features of the demo package."""

ROWS = 4096
"""Distinct candidates made from a description."""


class BadMaterial(Exception):
    """A traffic file or description that cannot be used: the place, and what was expected."""


class Range(msgspec.Struct, forbid_unknown_fields=True):
    """Values of one feature: low <= value < high."""

    kind: Literal["id", "category", "number"]
    low: float
    high: float

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[Any]:
        """[count] values."""
        if self.kind == "number":
            return rng.uniform(self.low, self.high, count).astype(np.float32)
        return rng.integers(int(self.low), int(self.high), count)


class Description(msgspec.Struct, forbid_unknown_fields=True):
    """Features by kind and range, and who asks."""

    users: int
    user_format: str
    """Python format of a user's number, as `u{:05d}`."""
    items: Range
    context: dict[str, Range]
    candidate: dict[str, Range]
    behaviour: dict[str, Range]
    scene: str | None = None


@dataclass(frozen=True)
class Material:
    """Everything that requests are drawn from."""

    users: tuple[str, ...]
    """The most active first."""
    heads: tuple[dict[str, Any], ...]
    """Bodies without request id, user, time and candidates: context, and scene where named."""
    candidates: Candidates
    """All distinct candidates."""
    events: tuple[dict[str, Any], ...]


def read_material(path: Path) -> Material:
    """Material from a traffic file (`.jsonl`) or a description (`.json`); raises BadMaterial."""
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as lines:
                return _from_lines(lines, str(path))
        return _described(msgspec.json.decode(path.read_bytes(), type=Description))
    except (msgspec.MsgspecError, OSError) as error:
        raise BadMaterial(f"{path}: {error}") from None


def _described(described: Description) -> Material:
    rng = np.random.default_rng(0)
    items = np.unique(described.items.draw(rng, ROWS))
    count = len(items)

    def rows(features: Mapping[str, Range]) -> tuple[dict[str, Any], ...]:
        columns = {name: r.draw(rng, 64).tolist() for name, r in features.items()}
        return tuple({name: column[i] for name, column in columns.items()} for i in range(64))

    scene = {} if described.scene is None else {"scene": described.scene}
    return Material(
        users=tuple(described.user_format.format(i) for i in range(described.users)),
        heads=tuple({**scene, "context": context} for context in rows(described.context)),
        candidates=Candidates(
            rng.permutation(items),
            rng.normal(size=count).astype(np.float32),
            {name: r.draw(rng, count) for name, r in described.candidate.items()},
        ),
        events=rows(described.behaviour),
    )


def _from_lines(lines: Iterable[bytes], where: str) -> Material:
    users: dict[str, None] = {}
    heads: list[dict[str, Any]] = []
    tables: list[Candidates] = []
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            match json.loads(line):
                case {"rank": {"candidates": dict(columns), "context": dict(context)} as body}:
                    users.setdefault(body["user_id"])
                    scene = {"scene": body["scene"]} if body.get("scene") else {}
                    heads.append({**scene, "context": context})
                    tables.append(_columns(columns))
                case {"user_id": str(user)}:
                    users.setdefault(user)
                case {"event": dict(features)}:
                    events.append(features)
                case _:
                    raise ValueError("expected rank (candidates in columns), user_id or event")
        except (ValueError, KeyError) as error:
            raise BadMaterial(f"{where}:{number}: {error!r}") from None
    if not tables:
        raise BadMaterial(f"{where}: expected at least one line with a `rank` body")
    return Material(tuple(users), tuple(heads), _distinct(tables), tuple(events))


def _columns(columns: dict[str, Any]) -> Candidates:
    item_id = np.array(columns["item_id"], np.int64)
    recall = columns.get("recall_score", [0.0] * len(item_id))
    features = {
        name: np.array(values, np.int64 if isinstance(values[0], int) else np.float32)
        for name, values in columns["features"].items()
    }
    return Candidates(item_id, np.array(recall, np.float32), features)


def _distinct(tables: list[Candidates]) -> Candidates:
    """All tables as one, each item once."""
    names = tables[0].features
    every = Candidates(
        np.concatenate([t.item_id for t in tables]),
        np.concatenate([t.recall_score for t in tables]),
        {name: np.concatenate([t.features[name] for t in tables]) for name in names},
    )
    return every.take(np.unique(every.item_id, return_index=True)[1])
