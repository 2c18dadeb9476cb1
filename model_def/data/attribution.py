"""Labels -> outcomes of a served request: which candidates were shown, clicked and ordered.

A click counts within its window after the exposure, an order within its own; both imply that the
item was shown. What cannot be used is counted by reason, never dropped silently.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model_def.schema import Frozen

Action = Literal["exposure", "click", "order"]
ACTIONS: tuple[Action, ...] = ("exposure", "click", "order")


class Windows(Frozen):
    """When an outcome is still its exposure's, in milliseconds."""

    click_ms: int = Field(default=30 * 60_000, ge=0, description="from the exposure")
    order_ms: int = Field(default=24 * 3_600_000, ge=0, description="from the exposure")
    skew_ms: int = Field(
        default=300_000, ge=0, description="how far clocks may differ: an effect before its cause"
    )
    wait_ms: int = Field(
        default=15 * 60_000, ge=0, description="for files to arrive, after the windows have passed"
    )

    def closed_before(self, now_ms: int) -> int:
        """Requests of earlier times have all their labels."""
        return now_ms - max(self.click_ms, self.order_ms) - self.skew_ms - self.wait_ms


class Label(NamedTuple):
    """What a caller reported of an item of an answer."""

    time_ms: int
    request_id: str
    item_id: int
    action: Action


@dataclass(frozen=True)
class Outcome:
    """Of a request of K candidates: bool [K] each."""

    shown: NDArray[np.bool_]
    clicked: NDArray[np.bool_]
    ordered: NDArray[np.bool_]


def attribute(
    time_ms: int,
    item_ids: NDArray[np.int64],
    labels: Iterable[Label],
    windows: Windows,
    counts: Counter[str],
) -> Outcome:
    """What became of a request of `time_ms`; adds to `counts` the labels used, by action, and
    those not used: duplicate, orphan (no candidate), skewed (before its cause) or late."""
    places = {item: place for place, item in enumerate(item_ids.tolist())}
    times: dict[Action, dict[int, int]] = {action: {} for action in ACTIONS}
    for label in sorted(labels):
        place = places.get(label.item_id)
        if place is None:
            counts["orphan"] += 1
        elif place in times[label.action]:
            counts["duplicate"] += 1
        else:
            times[label.action][place] = label.time_ms

    within: dict[Action, float] = {
        "exposure": np.inf,
        "click": windows.click_ms,
        "order": windows.order_ms,
    }
    marked = {action: np.zeros(len(item_ids), np.bool_) for action in ACTIONS}
    for action in ACTIONS:
        for place, at_ms in times[action].items():
            since_ms = time_ms if action == "exposure" else times["exposure"].get(place, time_ms)
            if at_ms < since_ms - windows.skew_ms:
                counts["skewed"] += 1
            elif at_ms > since_ms + within[action]:
                counts["late"] += 1
            else:
                marked[action][place] = True
                counts[action] += 1
    clicked = marked["click"] | marked["order"]
    return Outcome(marked["exposure"] | clicked, clicked, marked["order"])
