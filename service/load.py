"""Whole populations -> the feature store."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from model_def.batch import Rows
from service.deadline import Deadline
from service.features.store import FeatureStore
from service.ranking import Floats

TOGETHER = 200
"""Users written at a time; Redis syncs their records to disk together."""

PATIENCE_S = 30.0
"""For the acknowledgement of one write, seconds."""


class User(Protocol):
    """A user's snapshot and the behaviour after it (`model_def.data.traffic.StoredUser`)."""

    @property
    def user_id(self) -> str: ...
    @property
    def snapshot_ms(self) -> int: ...
    @property
    def profile(self) -> Rows:
        """[1]"""

    @property
    def lifelong(self) -> Rows: ...
    @property
    def realtime(self) -> Rows: ...


async def load_users(store: FeatureStore, users: Iterable[User]) -> int:
    """Write users; returns how many. Raises DependencyFailed."""
    count = 0
    waiting: list[User] = []
    for user in users:
        waiting.append(user)
        count += 1
        if len(waiting) == TOGETHER:
            await asyncio.gather(*[_load_user(store, each) for each in waiting])
            waiting.clear()
    await asyncio.gather(*[_load_user(store, each) for each in waiting])
    return count


async def _load_user(store: FeatureStore, user: User) -> None:
    deadline = Deadline.after(PATIENCE_S)
    await store.put_user(user.user_id, user.snapshot_ms, user.profile, user.lifelong, deadline)
    await store.append(user.user_id, user.realtime, deadline)


async def load_items(store: FeatureStore, items: Rows, popularity: Floats) -> int:
    """Write item records; returns how many. Raises DependencyFailed."""
    for start in range(0, len(items), TOGETHER):
        some = slice(start, start + TOGETHER)
        await store.put_items(items[some], popularity[some], Deadline.after(PATIENCE_S))
    return len(items)
