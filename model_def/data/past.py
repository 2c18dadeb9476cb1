"""What the simulated users have done: histories, today's behaviour, and what is known of both."""

from dataclasses import dataclass, field

import numpy as np

from model_def.batch import Rows
from model_def.data.simulator import (
    CLICK,
    CRAVING_HALF_LIFE_MS,
    CUISINES,
    DAY_MS,
    HOME,
    HOUR_MS,
    HOUR_SHARES,
    HOURS,
    ORDER,
    SCHEMA,
    Floats,
    Ints,
    Marketplace,
    Situation,
)
from model_def.rows import rows_from_columns

PRIOR_PRICE, PRIOR_ORDERS = 25.0, 4.0
"""The usual price of a user without orders, and how many orders that guess is worth."""

PAST_DAYS, PAST_VISITS, CLICKS_A_VISIT = 60, 18.0, 2
"""How long ago the past begins, visits in it of a user of activity 1, and clicks in each."""

PRIOR_CLICKS = 6.0
"""The same for the share of clicks by category."""


@dataclass
class Log:
    """One user's behaviour in order of time: columns that grow."""

    item: list[int] = field(default_factory=list)
    action: list[int] = field(default_factory=list)
    time_ms: list[int] = field(default_factory=list)
    event_id: list[int] = field(default_factory=list)

    def add(self, item: int, action: int, time_ms: int, event_id: int) -> None:
        """Append one behaviour."""
        self.item.append(item)
        self.action.append(action)
        self.time_ms.append(time_ms)
        self.event_id.append(event_id)

    def move_orders(self, other: "Log") -> None:
        """Append the orders to `other`, in order of time, and forget everything here."""
        for i in sorted(range(len(self.item)), key=lambda i: (self.time_ms[i], self.event_id[i])):
            if self.action[i] == ORDER:
                other.add(self.item[i], self.action[i], self.time_ms[i], self.event_id[i])
        for column in (self.item, self.action, self.time_ms, self.event_id):
            column.clear()


class Past:
    """The changing half of the simulation. `snapshot` freezes what happened before it."""

    def __init__(self, market: Marketplace, start_ms: int, seed: int = 0):
        self.market = market
        self.lifelong = [Log() for _ in range(market.users)]
        self.today = [Log() for _ in range(market.users)]
        self.orders = np.zeros((market.users, market.items))
        self.clicks = np.zeros((market.users, CUISINES + 1))
        self.spent = np.zeros(market.users)
        self.hourly = np.ones((CUISINES + 1, 24))
        """Clicks of everyone before the simulation began, by category and hour, and a prior."""
        self.snapshot_ms = start_ms
        self._next_event = 0
        rng = np.random.default_rng((seed, 1))
        for user in np.flatnonzero(~market.cold).tolist():
            self._live(user, start_ms, rng)
        self.snapshot(start_ms)
        self.popularity: Floats = self.orders.sum(0)
        """Orders of each item before the simulation began."""
        expected = self.hourly.sum(1, keepdims=True) * self.hourly.sum(0) / self.hourly.sum()
        self.at_hour: Floats = np.log(self.hourly / expected)

    def _live(self, user: int, end_ms: int, rng: np.random.Generator) -> None:
        """A past of the last 60 days: clicks and orders by the same tastes, without sessions."""
        market, none = self.market, np.zeros(CUISINES + 1)
        items, midnight = np.arange(market.items), end_ms // DAY_MS * DAY_MS
        visits = int(min(200, 1 + rng.poisson(PAST_VISITS * market.activity[user])))
        days = np.sort(rng.integers(1, PAST_DAYS + 1, visits))[::-1]
        hours = rng.choice(HOURS, visits, p=HOUR_SHARES)
        for day, hour in zip(days.tolist(), hours.tolist(), strict=True):
            at_ms = midnight - day * DAY_MS + hour * HOUR_MS + int(rng.integers(0, HOUR_MS))
            here = Situation(user, at_ms, HOME, none, 0.0)
            ctr, order = market.probabilities(here, items, self.orders[user])
            odds = ctr / (1 - ctr)
            chosen = rng.choice(market.items, CLICKS_A_VISIT, p=odds / odds.sum())
            self.hourly[market.category[chosen], hour] += 1
            for item in chosen.tolist():
                self.act(user, item, CLICK, at_ms)
                if rng.random() < order[item]:
                    self.act(user, item, ORDER, at_ms)

    def act(self, user: int, item: int, action: int, time_ms: int) -> None:
        """A user clicks or orders."""
        self.today[user].add(item, action, time_ms, self._next_event)
        self._next_event += 1

    def snapshot(self, at_ms: int) -> None:
        """Orders up to `at_ms` become lifelong sequences; clicks live on in the counts alone."""
        self.snapshot_ms = at_ms
        for user, log in enumerate(self.today):
            items, actions = np.array(log.item, np.int64), np.array(log.action)
            clicked, ordered = items[actions == CLICK], items[actions == ORDER]
            np.add.at(self.clicks[user], self.market.category[clicked], 1)
            np.add.at(self.orders[user], ordered, 1)
            self.spent[user] += self.market.price[ordered].sum()
            log.move_orders(self.lifelong[user])

    def situation(self, user: int, at_ms: int, place: int) -> Situation:
        """The user at a time, with the behaviour since the snapshot that is strictly earlier."""
        log, craving, ate = self.today[user], np.zeros(CUISINES + 1), 0.0
        for item, action, time_ms in zip(log.item, log.action, log.time_ms, strict=True):
            if time_ms < at_ms:
                weight = 0.5 ** ((at_ms - time_ms) / CRAVING_HALF_LIFE_MS)
                if action == CLICK:
                    craving[self.market.category[item]] += weight
                else:
                    ate += weight
        return Situation(user, at_ms, place, craving, ate)

    def usual_price(self, user: int) -> float:
        """Mean price of the user's orders, with a prior."""
        count = self.orders[user].sum()
        return float((self.spent[user] + PRIOR_ORDERS * PRIOR_PRICE) / (count + PRIOR_ORDERS))

    def cross(self, situation: Situation, items: Ints) -> dict[str, Floats]:
        """The cross features of candidates, by name."""
        user, market = situation.user, self.market
        distance = market.distance_km[situation.place, user, items]
        clicks = self.clicks[user]
        share = (clicks + PRIOR_CLICKS / CUISINES) / (clicks.sum() + PRIOR_CLICKS)
        return {
            "distance_km": distance,
            "eta_minutes": market.eta_minutes(distance, items, situation.hour),
            "price_ratio": market.price[items] / self.usual_price(user),
            "category_share": share[market.category[items]],
            "orders_at_item": self.orders[user, items],
            "category_at_hour": self.at_hour[market.category[items], situation.hour],
        }

    def item_columns(self, items: Ints) -> dict[str, Floats | Ints]:
        """The item features, by name."""
        market = self.market
        return {
            "item_id": market.item_id[items],
            "category": market.category[items],
            "price": market.price[items],
            "rating": market.rating[items],
            "popularity": self.popularity[items],
        }

    def profile_rows(self, user: int) -> Rows:
        """[1] of the profile layout, as of the last snapshot; a cold user's age is known."""
        columns = {
            "age_group": [int(self.market.age_group[user])],
            "member": [int(self.market.member[user])],
            "favourite_category": [int(self.clicks[user].argmax())],
            "usual_price": [self.usual_price(user)],
            "orders_before": [float(self.orders[user].sum())],
        }
        return rows_from_columns(SCHEMA.layouts["profile"], columns, 1)

    def lifelong_rows(self, user: int) -> Rows:
        """The lifelong sequence as of the last snapshot."""
        log = self.lifelong[user]
        stamps = {"time_ms": log.time_ms}
        return self._behaviour_rows("lifelong", log, stamps)

    def realtime_rows(self, user: int) -> Rows:
        """Behaviour since the last snapshot."""
        log = self.today[user]
        return self._behaviour_rows(
            "realtime", log, {"time_ms": log.time_ms, "event_id": log.event_id}
        )

    def _behaviour_rows(self, segment: str, log: Log, stamps: dict[str, list[int]]) -> Rows:
        items = np.array(log.item, np.int64)
        columns = {
            "item_id": self.market.item_id[items],
            "category": self.market.category[items],
            "action": np.array(log.action, np.int64),
            "price": self.market.price[items],
        }
        return rows_from_columns(SCHEMA.layouts[segment], columns, len(items), stamps)
