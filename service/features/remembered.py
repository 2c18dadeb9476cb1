"""What Redis said last of each user, for when it says nothing."""

from collections import OrderedDict
from collections.abc import Sequence

Values = Sequence[bytes | None]


class RememberedUsers:
    """Stored values by user id, at most `capacity` bytes of them; who came last stays longest."""

    def __init__(self, capacity: int):
        self._capacity, self._bytes = capacity, 0
        self._users: OrderedDict[str, Values] = OrderedDict()

    def keep(self, user_id: str, values: Values) -> None:
        """Remember what the store just said; a user that it does not know is none."""
        self._bytes -= _size(self._users.pop(user_id, ()))
        if any(values):
            self._users[user_id] = values
            self._bytes += _size(values)
        while self._bytes > self._capacity:
            self._bytes -= _size(self._users.popitem(last=False)[1])

    def get(self, user_id: str) -> Values | None:
        """What is remembered."""
        return self._users.get(user_id)


def _size(values: Values) -> int:
    return sum(len(value) for value in values if value)
