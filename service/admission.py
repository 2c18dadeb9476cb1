"""Who gets in: a bound on requests in flight, and no request that could not be answered in time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from service.deadline import Deadline
from service.errors import Overloaded

WEIGHT = 0.1
"""Of the newest observation in the moving average."""


class Admission:
    """Counts requests in flight and learns what each adds to the wait of the next."""

    def __init__(self, limit: int):
        self._limit = limit
        self._share_s = 0.0
        self.in_flight = 0

    def wait_s(self) -> float:
        """Estimated seconds until a request that came now would be answered.

        By Little's law: requests in flight times the seconds between two answers, which is the
        time that a request took divided by the number that shared it.
        """
        return self.in_flight * self._share_s

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a place; raises Overloaded where there is none."""
        if self.in_flight >= self._limit:
            raise self._refusal(f"{self.in_flight} requests in flight, the most allowed")
        self.in_flight += 1
        beside, start = self.in_flight, monotonic()
        try:
            yield
        finally:
            self._share_s += WEIGHT * ((monotonic() - start) / beside - self._share_s)
            self.in_flight -= 1

    def check(self, deadline: Deadline) -> None:
        """Refuse now what would be late; raises Overloaded."""
        if self.in_flight > 1 and self.wait_s() > deadline.left():
            raise self._refusal(f"estimated wait {1e3 * self.wait_s():.0f} ms exceeds the deadline")

    def _refusal(self, problem: str) -> Overloaded:
        return Overloaded(problem, retry_after_s=max(1, math.ceil(self.wait_s())))
