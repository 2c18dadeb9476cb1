"""Item records kept in process: bounded in number and in age, absences included."""

import math
from collections.abc import Iterable
from time import monotonic


class ItemCache:
    """At most `capacity` stored values by item id; each is asked for again `ttl_s` seconds after it
    came, or once it has changed.

    The oldest leave first. None stands for an item that the store does not know.
    """

    def __init__(self, capacity: int, ttl_s: float):
        self._capacity, self._ttl_s = capacity, ttl_s
        self._values: dict[int, tuple[float, bytes | None]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def split(self, item_ids: Iterable[int]) -> tuple[dict[int, bytes | None], list[int]]:
        """What is held of the items, and the ids that have to be asked for."""
        oldest = monotonic() - self._ttl_s
        held: dict[int, bytes | None] = {}
        unknown = []
        for item_id in item_ids:
            entry = self._values.get(item_id)
            if entry is not None and entry[0] >= oldest:
                held[item_id] = entry[1]
            else:
                unknown.append(item_id)
        return held, unknown

    def outdated(self, item_ids: Iterable[int]) -> dict[int, bytes | None]:
        """What was known of items, however old: better than nothing while the store is away."""
        return {i: entry[1] for i in item_ids if (entry := self._values.get(i)) is not None}

    def keep(self, values: dict[int, bytes | None]) -> None:
        """Remember what the store just said."""
        now = monotonic()
        for item_id, value in values.items():
            self._values.pop(item_id, None)
            self._values[item_id] = (now, value)
        while len(self._values) > self._capacity:
            del self._values[next(iter(self._values))]

    def changed(self, item_id: int) -> None:
        """Another value is stored now."""
        if (entry := self._values.get(item_id)) is not None:
            self._values[item_id] = (-math.inf, entry[1])
