"""Interactions -> ranking lists: the items of an occasion, and negatives drawn from its past."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model_def.data.mapping import Negatives
from model_def.data.source_columns import Integers, Interactions

DRAWS = 8
"""Candidates drawn per negative wanted before a short list is accepted: the past may hold too
few items."""


@dataclass(frozen=True)
class Occasions:
    """R requests in time order, each with at least one positive.

    `first` is each one's first interaction, which gives its user, time and context. Its distinct
    items are the next `counts[i]` of `items`; those that are `positive` belong in its list.
    """

    request_id: NDArray[np.str_]
    first: Integers
    items: Integers
    positive: NDArray[np.bool_]
    counts: Integers


def find_occasions(
    rows: Interactions, from_ms: int, new_items: Literal["drop", "keep"]
) -> tuple[Occasions, Integers]:
    """The requests of `rows` from a time on, and the interactions dropped as new items.

    A request's time is that of its first interaction; an item is new if nobody chose it earlier.
    """
    _, first, code = np.unique(rows.request, return_index=True, return_inverse=True)
    at = rows.time_ms[first][code]
    met = np.full(rows.item.max(initial=0) + 1, np.iinfo(np.int64).max)
    np.minimum.at(met, rows.item, rows.time_ms)
    new = met[rows.item] >= at
    dropped = new & (new_items == "drop")
    kept = np.isin(code, code[~dropped & (at >= from_ms)])
    pairs = np.stack([first[code], rows.item, ~dropped])[:, kept]
    starts, items, positive = np.unique(pairs, axis=1)
    first, counts = np.unique(starts, return_counts=True)
    return (
        Occasions(rows.request[first], first, items, positive.astype(bool), counts),
        np.flatnonzero(dropped & (at >= from_ms)),
    )


def draw_negatives(
    rows: Interactions, request_id: str, past: int, basket: set[int], settings: Negatives
) -> list[int]:
    """Distinct items, none of `basket`, each that of a random one of the first `past` rows.

    The draw depends on the request's id and its past alone. Fewer than asked where the past
    holds too few items.
    """
    digest = blake2b(f"{settings.seed} {request_id}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    drawn = rows.item[rng.integers(0, past, DRAWS * settings.count)] if past else rows.item[:0]
    fresh = [item for item in dict.fromkeys(drawn.tolist()) if item not in basket]
    return fresh[: settings.count]
