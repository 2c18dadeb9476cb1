"""A food-delivery marketplace whose click and order probabilities are known.

Users with tastes, budgets and places order from restaurants around them; what they do today makes
them want more of it. The formulas of `Marketplace.probabilities` are the only truth there is, so
the best reachable AUC and the regret of any ranking can be computed. NumPy only: the demo and the
load test run where no torch and no Parquet is installed. `model_def.data.traffic` makes requests
and logs of it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_def.schema import (
    CategoryFeature,
    FeatureSchema,
    IdFeature,
    NumberFeature,
    Piecewise,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
CLICK, ORDER = 1, 2
"""Values of a behaviour's `action`."""

CUISINES = 12
"""Categories 1..12; 0 is unknown."""

HOME, OFFICE = 1, 2
"""Values of a request's `place`: where the user is."""

FAVOURITES = 3
"""Categories that a user likes, of CUISINES."""

CITY_KM = 10.0
FIRST_ITEM_ID = 10_000

HOURS = (7, 8, 11, 12, 13, 15, 17, 18, 19, 20, 21, 22)
HOUR_SHARES = np.array([5, 6, 10, 16, 9, 5, 7, 12, 13, 9, 5, 3]) / 100
"""Hours at which sessions begin, and their shares."""


def _category(name: str, size: int) -> CategoryFeature:
    return CategoryFeature(name=name, size=size)


def _bins(name: str, *edges: float) -> NumberFeature:
    return NumberFeature(name=name, transform=Piecewise(edges=edges))


_PRICE = _bins("price", 8, 13, 17, 21, 25, 30, 37, 50, 80)

SCHEMA = FeatureSchema(
    name="food-delivery",
    profile=(
        _category("age_group", 6),
        _category("member", 3),
        _category("favourite_category", CUISINES + 1),
        _bins("usual_price", 8, 13, 17, 21, 25, 30, 37, 50, 80),
        _bins("orders_before", 0, 2, 5, 10, 20, 40, 80),
    ),
    behaviour=(
        IdFeature(name="item_id"),
        _category("category", CUISINES + 1),
        _category("action", 3),
        _PRICE,
    ),
    item=(
        IdFeature(name="item_id"),
        _category("category", CUISINES + 1),
        _PRICE,
        _bins("rating", 2.8, 3.4, 3.8, 4.2, 4.6, 5),
        _bins("popularity", 0, 2, 5, 10, 20, 40, 80),
    ),
    cross=(
        _bins("distance_km", 0, 0.5, 1, 1.5, 2, 3, 4, 6, 9),
        _bins("eta_minutes", 10, 20, 27, 34, 42, 55, 75),
        _bins("price_ratio", 0.2, 0.5, 0.75, 1, 1.25, 1.6, 2.5),
        _bins("category_share", 0, 0.03, 0.06, 0.1, 0.15, 0.22, 0.35, 0.6),
        _bins("orders_at_item", 0, 1, 2, 4, 8),
        _bins("category_at_hour", -1.5, -1, -0.5, 0, 0.5, 1, 1.5),
    ),
    context=(_category("hour", 24), _category("weekday", 7), _category("place", 3)),
)
"""Cross features are of the user's past up to the snapshot: `price_ratio` to the user's usual
price, `category_share` of the user's clicks that went to the item's category, `category_at_hour`
the log of how much more often than on average the category is clicked at this hour, by everyone."""


@dataclass(frozen=True)
class Situation:
    """A user, a place and a time, and how today's behaviour weighs on it."""

    user: int
    at_ms: int
    place: int
    craving: Floats
    """[CUISINES + 1]: clicks of today by category, each halving every CRAVING_HALF_LIFE_MS."""
    ate: float
    """Orders of today, decaying alike."""

    @property
    def hour(self) -> int:
        """Hour of the day, UTC."""
        return self.at_ms // HOUR_MS % 24

    @property
    def weekday(self) -> int:
        """0 Monday .. 6 Sunday; the epoch was a Thursday."""
        return (self.at_ms // DAY_MS + 3) % 7


CRAVING_HALF_LIFE_MS = 3 * HOUR_MS


class Marketplace:
    """Restaurants and users, drawn once from a seed; nothing here changes afterwards."""

    def __init__(self, users: int = 800, items: int = 800, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.users, self.items = users, items
        self.item_id: Ints = FIRST_ITEM_ID + np.arange(items)
        self.category = 1 + rng.choice(CUISINES, items, p=_zipf(CUISINES))
        level = rng.normal(0, 0.25, CUISINES + 1)[self.category]
        self.price: Floats = np.round(25 * np.exp(level + rng.normal(0, 0.35, items)), 1)
        self.quality: Floats = rng.normal(0, 1, items)
        noise = rng.normal(0, 0.5, items)
        self.rating: Floats = (4 + 0.35 * (self.quality + noise)).clip(1, 5).round(1)
        self.prepare_minutes: Floats = np.round(rng.uniform(8, 25, items))
        centres = rng.uniform(0, CITY_KM, (8, 2))
        self.item_at: Floats = centres[rng.integers(0, 8, items)] + rng.normal(0, 1.2, (items, 2))

        self.user_id = np.array([f"u{i:05d}" for i in range(users)])
        self.age_group = rng.integers(1, 6, users)
        self.member = rng.integers(1, 3, users)
        favourite = rng.random((users, CUISINES + 1)).argsort(1) < FAVOURITES
        self.taste: Floats = np.where(favourite, 1.0, rng.normal(-0.5, 0.25, favourite.shape))
        self.budget: Floats = 25 * np.exp(rng.normal(0, 0.35, users))
        self.activity: Floats = np.exp(rng.normal(0, 0.6, users))
        """Relative rate of sessions, and of everything that happened before."""
        self.cold = rng.random(users) < 0.06
        """Users of whom nothing is known at first."""
        home = rng.uniform(0, CITY_KM, (users, 2))
        office = centres[rng.integers(0, 8, users)] + rng.normal(0, 1, (users, 2))
        places = np.stack([home, home, office])[:, :, None] - self.item_at
        self.distance_km: NDArray[np.floating[Any]] = np.linalg.norm(places, axis=-1)
        """[place, user, item]."""
        self.daypart = _dayparts(rng)

    def eta_minutes(self, distance_km: Floats, items: Ints, hour: int) -> Floats:
        """Expected delivery time: kitchen, road, and the rush at noon and in the evening."""
        rush = 1.3 if hour in (12, 13, 18, 19, 20) else 1.0
        return rush * self.prepare_minutes[items] + 5.0 * distance_km

    def probabilities(
        self, situation: Situation, items: Ints, orders_at_item: Floats
    ) -> tuple[Floats, Floats]:
        """True probability [K] of a click, and of an order given a click.

        `orders_at_item` are the user's orders at each item up to the snapshot.
        """
        user, hour = situation.user, situation.hour
        category = self.category[items]
        distance = self.distance_km[situation.place, user, items]
        late = self.eta_minutes(distance, items, hour) / 30 - 1
        dear = np.log(self.price[items] / self.budget[user])
        near_matters = 0.5 + 0.15 * self.age_group[user]
        price_matters = 1.6 if self.member[user] == 1 else 0.7
        familiar = np.log1p(orders_at_item)
        craving = np.minimum(situation.craving[category], 2.0)
        click = (
            -0.6
            + 0.8 * self.taste[user, category]
            + 0.45 * self.quality[items]
            - near_matters * 2.2 * np.log1p(distance)
            - price_matters * np.maximum(dear, 0)
            + 0.7 * self.daypart[category, hour]
            + 0.9 * familiar
            + 1.0 * craving
            - 0.8 * min(situation.ate, 1.5)
        )
        order = (
            -1.4
            + 0.4 * self.taste[user, category]
            + 0.3 * self.quality[items]
            - 1.0 * late
            - 0.8 * price_matters * dear
            + 0.8 * familiar
            - 1.5 * min(situation.ate, 1.5)
        )
        return _sigmoid(click), _sigmoid(order)


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _zipf(count: int) -> Floats:
    weights = 1 / np.sqrt(np.arange(1, count + 1))
    return np.asarray(weights / weights.sum())


def _dayparts(rng: np.random.Generator) -> Floats:
    """[CUISINES + 1, 24]: how much each cuisine is wanted at each hour, one or two humps a day."""
    hours = np.arange(24)
    peaks = rng.choice([8, 12, 15, 19, 22], CUISINES + 1)
    away = np.abs(hours - peaks[:, None])
    away = np.minimum(away, 24 - away)
    return np.asarray(2 * np.exp(-((away / 3.0) ** 2)) - 0.7)
