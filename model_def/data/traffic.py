"""Requests of the simulated marketplace, and what users do with the answers.

One day is: sessions of a few requests, minutes apart; what is clicked in one request is real-time
behaviour in the next. `session` shows all that recall found, unless its caller ranks and shows
some (the closed loop).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_def.batch import Rows
from model_def.data.past import Past
from model_def.data.simulator import (
    CLICK,
    DAY_MS,
    HOME,
    HOUR_MS,
    HOUR_SHARES,
    HOURS,
    OFFICE,
    ORDER,
    SCHEMA,
    Floats,
    Ints,
    Situation,
)
from model_def.rows import rows_from_columns

SNAPSHOT_HOUR = 4
"""UTC hour at which profiles and lifelong sequences are frozen, every day."""

SCENE = "home"
SESSIONS_A_DAY = 1.4
"""Of a user of activity 1."""


@dataclass(frozen=True)
class Asked:
    """A ranking request: who, where and when, and the candidates (indices) that recall found."""

    request_id: str
    situation: Situation
    items: Ints
    recall_score: Floats


@dataclass(frozen=True)
class Reaction:
    """What became of the candidates shown: clicks and orders, and their true CTR and CTCVR."""

    click: NDArray[np.int8]
    order: NDArray[np.int8]
    ctr: Floats
    ctcvr: Floats


Show = Callable[[Asked], Ints]
"""Positions of the candidates that are shown."""


def everything(asked: Asked) -> Ints:
    """All that recall found."""
    return np.arange(len(asked.items))


class Traffic:
    """Draws requests and reactions; the state that they change is `past`."""

    def __init__(self, past: Past, seed: int = 0):
        self.past, self.market = past, past.market
        self._rng = np.random.default_rng((seed, 2))
        self._numbers = count()

    def ask(self, user: int, at_ms: int, place: int, candidates: int) -> Asked:
        """A request of the user for `candidates` items: near, popular, or ordered before."""
        market, past = self.market, self.past
        score = (
            0.5 * np.log1p(past.popularity)
            - market.distance_km[place, user] / 2.5
            + np.log1p(past.orders[user])
        )
        noisy = score + self._rng.gumbel(size=market.items)
        items = np.argsort(-noisy)[:candidates]
        request_id = f"r{next(self._numbers):07d}"
        return Asked(request_id, past.situation(user, at_ms, place), items, score[items])

    def truth(self, asked: Asked) -> tuple[Floats, Floats]:
        """True CTR and CTCVR [K] of a request's candidates."""
        user = asked.situation.user
        orders = self.past.orders[user, asked.items]
        click, order = self.market.probabilities(asked.situation, asked.items, orders)
        return click, click * order

    def react(self, asked: Asked, shown: Ints) -> Reaction:
        """What the user does with the candidates at positions `shown`; it becomes behaviour."""
        rng, situation = self._rng, asked.situation
        ctr, ctcvr = (probability[shown] for probability in self.truth(asked))
        click = rng.random(len(shown)) < ctr
        order = click & (rng.random(len(shown)) < ctcvr / ctr)
        at_ms = situation.at_ms
        for i in np.flatnonzero(click).tolist():
            item = int(asked.items[shown[i]])
            at_ms += int(rng.integers(5_000, 30_000))
            self.past.act(situation.user, item, CLICK, at_ms)
            if order[i]:
                at_ms += int(rng.integers(30_000, 90_000))
                self.past.act(situation.user, item, ORDER, at_ms)
        return Reaction(click.astype(np.int8), order.astype(np.int8), ctr, ctcvr)

    def sessions(self, day_ms: int) -> list[tuple[int, int]]:
        """(start, user) of the sessions in the day that begins at `day_ms`, ascending."""
        rng, market = self._rng, self.market
        users = np.repeat(
            np.arange(market.users), rng.poisson(SESSIONS_A_DAY * np.minimum(market.activity, 3))
        )
        hours = rng.choice(HOURS, len(users), p=HOUR_SHARES)
        starts = day_ms // DAY_MS * DAY_MS + hours * HOUR_MS + rng.integers(0, HOUR_MS, len(users))
        return sorted(zip(starts.tolist(), users.tolist(), strict=True))

    def session(
        self, user: int, start_ms: int, candidates: int, show: Show = everything
    ) -> Iterator[tuple[Asked, Reaction]]:
        """Up to four requests and the reactions to the candidates that `show` picks."""
        hour = start_ms // HOUR_MS % 24
        place = OFFICE if 9 <= hour < 18 and self._rng.random() < 0.7 else HOME
        at_ms = start_ms
        for _ in range(4):
            asked = self.ask(user, at_ms, place, candidates)
            reaction = self.react(asked, show(asked))
            yield asked, reaction
            if reaction.order.any() or self._rng.random() < 0.4:
                return
            at_ms += int(self._rng.integers(3 * 60_000, 12 * 60_000))

    def body(self, asked: Asked, *, item_features: bool = False) -> dict[str, Any]:
        """The JSON body of `POST /v1/rank`, in columns; without item features, which are stored."""
        situation = asked.situation
        columns: dict[str, Any] = self.past.cross(situation, asked.items)
        if item_features:
            columns |= self.past.item_columns(asked.items)
            del columns["item_id"]
        return {
            "request_id": asked.request_id,
            "user_id": str(self.market.user_id[situation.user]),
            "scene": SCENE,
            "timestamp": situation.at_ms,
            "context": context_of(situation),
            "candidates": {
                "item_id": self.market.item_id[asked.items].tolist(),
                "recall_score": asked.recall_score.round(4).tolist(),
                "features": {name: column.tolist() for name, column in columns.items()},
            },
        }


@dataclass(frozen=True)
class StoredUser:
    """What the feature store holds of a user."""

    user_id: str
    snapshot_ms: int
    profile: Rows
    lifelong: Rows
    realtime: Rows


def stored_users(past: Past) -> Iterator[StoredUser]:
    """Every user, as of the last snapshot and the behaviour since."""
    for user, user_id in enumerate(past.market.user_id.tolist()):
        yield StoredUser(
            user_id,
            past.snapshot_ms,
            past.profile_rows(user),
            past.lifelong_rows(user),
            past.realtime_rows(user),
        )


def stored_items(past: Past) -> tuple[Rows, Floats]:
    """Every item's row of the `item` layout, and its popularity."""
    items = np.arange(past.market.items)
    columns = past.item_columns(items)
    return rows_from_columns(SCHEMA.layouts["item"], columns, len(items)), past.popularity


def latest_snapshot(at_ms: int) -> int:
    """When the features known at `at_ms` were frozen: the last SNAPSHOT_HOUR up to it."""
    offset = SNAPSHOT_HOUR * HOUR_MS
    return (at_ms - offset) // DAY_MS * DAY_MS + offset


def context_of(situation: Situation) -> dict[str, int]:
    """The context features of a request."""
    return {"hour": situation.hour, "weekday": situation.weekday, "place": situation.place}
