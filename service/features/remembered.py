"""Users as Redis told of them last: served while nothing has changed, and when it says nothing."""

from collections import OrderedDict
from dataclasses import dataclass
from time import monotonic

from service.features.users import StoredUser


@dataclass
class _Entry:
    user: StoredUser
    read_at: float
    current: bool


class RememberedUsers:
    """Users by key, at most `capacity` bytes, stored and packed; the least recently read leave.

    A user is current until it is told that it changed, and at most for `ttl_s` seconds; then it
    is remembered still, for when Redis fails.
    """

    def __init__(self, capacity: int, ttl_s: float):
        self._capacity, self._ttl_s, self._bytes = capacity, ttl_s, 0
        self._users: OrderedDict[str, _Entry] = OrderedDict()
        self._current_since = 0.0

    def keep(self, key: str, user: StoredUser) -> None:
        """Remember what Redis just said; a user of no bytes is none."""
        if (old := self._users.pop(key, None)) is not None:
            self._bytes -= old.user.size
        if not user.size:
            return
        self._users[key] = _Entry(user, monotonic(), current=True)
        self._bytes += user.size
        while self._bytes > self._capacity:
            self._bytes -= self._users.popitem(last=False)[1].user.size

    def current(self, key: str) -> StoredUser | None:
        """A user that Redis would tell the same of."""
        entry = self._users.get(key)
        if entry is None or not entry.current or entry.read_at < self._current_since:
            return None
        if monotonic() - entry.read_at >= self._ttl_s:
            return None
        self._users.move_to_end(key)
        return entry.user

    def get(self, key: str) -> StoredUser | None:
        """A user as it was last, however long ago."""
        entry = self._users.get(key)
        return None if entry is None else entry.user

    def changed(self, key: str) -> None:
        """Another value is stored now."""
        if (entry := self._users.get(key)) is not None:
            entry.current = False

    def any_changed(self) -> None:
        """Any value may be another now."""
        self._current_since = monotonic()
