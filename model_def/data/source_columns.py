"""A user's tables as arrays: what happened, to whom, with what, in time order."""

from collections.abc import Mapping as Entries
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_def.data.encoding import Vocabulary
from model_def.data.mapping import (
    CategoryColumn,
    ClockColumn,
    IdColumn,
    Mapping,
    NumberColumn,
    PastNumber,
    Side,
    milliseconds,
)
from model_def.data.rejects import Rejects
from model_def.data.source_table import SourceTable

Integers = NDArray[np.int64]
Features = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Interactions:
    """N usable interactions in time order; users and items as places in `Tables`' lists."""

    user: Integers
    item: Integers
    time_ms: Integers
    request: NDArray[np.str_]
    table_row: Integers
    event: Features
    context: Features
    sums: Features
    """The number columns that ratios read."""


@dataclass(frozen=True)
class Tables:
    """All that an import reads. Features of users and items are by their place in the lists."""

    table: SourceTable
    interactions: Interactions
    user_id: NDArray[np.str_]
    item_id: Integers
    profile: Features
    items: Features


def read_tables(mapping: Mapping, source: Path, words: Vocabulary, rejects: Rejects) -> Tables:
    """Read the tables of `mapping` under `source`, rejecting rows that cannot be used."""
    named = mapping.interactions
    table = SourceTable(source / named.table, rejects)
    user, item = table.keys(named.user), table.ids(named.item, required=True)
    time_ms, request = table.times(named.time), table.keys(named.request)
    early = time_ms < milliseconds(mapping.train_until)
    event = {
        name: _column(table, f"event.{name}", spec, words, early)
        for name, spec in mapping.event.items()
    }
    context = {
        name: _clock(spec, time_ms)
        if isinstance(spec, ClockColumn)
        else _column(table, f"context.{name}", spec, words, early)
        for name, spec in mapping.context.items()
    }
    pasts = [*mapping.cross.values(), *mapping.profile.values()]
    of = {name for s in pasts if isinstance(s, PastNumber) for name in s.of or ()}
    sums = {name: table.numbers(name, None) for name in sorted(of)}
    _require_one_user(table, named.user, user, request)

    kept = np.flatnonzero(table.good)
    kept = kept[np.argsort(time_ms[kept], kind="stable")]
    user_id, profile = _side(mapping.users, "profile", mapping, source, words, rejects, user[kept])
    item_id, items = _side(mapping.items, "item", mapping, source, words, rejects, item[kept])
    interactions = Interactions(
        np.searchsorted(user_id, user[kept]),
        np.searchsorted(item_id, item[kept]),
        time_ms[kept],
        request[kept],
        kept,
        *({name: values[kept] for name, values in part.items()} for part in (event, context, sums)),
    )
    return Tables(table, interactions, user_id, item_id, profile, items)


def _side(
    side: Side | None,
    group: Literal["profile", "item"],
    mapping: Mapping,
    source: Path,
    words: Vocabulary,
    rejects: Rejects,
    seen: NDArray[Any],
) -> tuple[NDArray[Any], Features]:
    """Keys, ascending, and features of users (those seen) or of items (the table's as well)."""
    keys = np.unique(seen)
    if side is None:
        return keys, {}
    table = SourceTable(source / side.table, rejects)
    key = table.keys(side.key) if group == "profile" else table.ids(side.key, required=True)
    repeats = np.setdiff1d(np.flatnonzero(table.good), _first_of_each(key, table.good))
    table.reject(repeats, f"{side.key}: repeats an earlier row's")
    everything = np.ones(len(table), bool)
    specs: Entries[str, Any] = getattr(mapping, group)
    columns = {
        name: _column(table, f"{group}.{name}", spec, words, everything)
        for name, spec in specs.items()
        if not isinstance(spec, PastNumber)
    }
    if group == "item":
        keys = np.unique(np.concatenate([keys, key[table.good]]))
    rows = np.flatnonzero(table.good & np.isin(key, keys))
    place = np.searchsorted(keys, key[rows])
    features = {}
    for name, values in columns.items():
        absent = specs[name].default if isinstance(specs[name], NumberColumn) else 0
        features[name] = np.full(len(keys), absent, values.dtype)
        features[name][place] = values[rows]
    return keys, features


def _first_of_each(key: NDArray[Any], good: NDArray[np.bool_]) -> Integers:
    rows = np.flatnonzero(good)
    return rows[np.unique(key[rows], return_index=True)[1]]


def _column(
    table: SourceTable,
    name: str,
    spec: IdColumn | CategoryColumn | NumberColumn,
    words: Vocabulary,
    learn_from: NDArray[np.bool_],
) -> NDArray[Any]:
    match spec:
        case IdColumn():
            return table.ids(spec.id)
        case CategoryColumn():
            texts = table.texts(spec.category)
            return words.encode(name, texts, spec.most, learn_from & table.good)
        case NumberColumn():
            return table.numbers(spec.number, spec.default)


def _clock(spec: ClockColumn, time_ms: Integers) -> Integers:
    hours = time_ms // 3_600_000
    return hours % 24 if spec.clock == "hour" else (hours // 24 + 3) % 7  # 1970 began a Thursday


def _require_one_user(
    table: SourceTable, name: str, user: NDArray[np.str_], request: NDArray[np.str_]
) -> None:
    """Reject rows of a request whose user is not that of its first row."""
    rows = np.flatnonzero(table.good)
    _, first, code = np.unique(request[rows], return_index=True, return_inverse=True)
    odd = user[rows] != user[rows][first][code]
    table.reject(rows[odd], f"{name}: differs within its request")
