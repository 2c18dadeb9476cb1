"""Who gets in, and when: what could not be answered in time is refused before it costs anything.

    headers -> check -> body -> turn: at once, or a wait, the least slack first -> work

Waiting is estimated by how often a turn ends: measured while there is a queue, by Little's law
before (of the requests at work, one ends each `latency / limit` seconds). Half of the time that a
request has left, in these units, is the number that may wait before it; the other half is for
what an estimate cannot know. How much of it one caller may fill is set by a dynamic threshold
(Choudhury and Hahne, 1998): as many as are left free. A lone flood then fills half of the time and
leaves the other half, so that a caller with little to ask finds room; several floods share alike.
"""

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import Callable
from time import monotonic

from service.deadline import Deadline
from service.errors import Expired, Overloaded
from service.limit import Limit

WEIGHT = 0.1
"""Of the newest observation in the moving averages."""

WAITED = 0.5
"""Share of the time that a request has to spare which it may be expected to wait."""

Place = asyncio.Future[None]


class Admission:
    """At most an adaptive number of requests at work, and a bounded queue before them."""

    def __init__(
        self, most_in_flight: int, most_waiting: int, lag: Callable[[], float] = lambda: 0.0
    ):
        """`lag` tells how late the event loop is, in seconds."""
        self._lag = lag
        self.limit = Limit(most_in_flight)
        self.in_flight = 0
        self._most_waiting = most_waiting
        self._latency_s = 0.0
        self._interval_s: float | None = None
        self._ended_at = 0.0
        self._queue: list[tuple[float, int, Place]] = []
        self._entered = 0
        self._waking = False
        self._pausing = 0
        self._of_caller: Counter[str] = Counter()
        self.waiting = 0

    def wait_s(self) -> float:
        """Estimated seconds until a request that came now would get its turn."""
        return 0.0 if self.free else self._wait_s()

    def check(self, caller: str, deadline: Deadline) -> None:
        """Raises Overloaded where a request that came now could not be answered in time, or where
        its caller has as many waiting as there is room left. Costs microseconds."""
        left_s = deadline.left()
        if not left_s:
            raise Expired("the deadline passed before the request was read", retry_after_s=1)
        if self.free:
            return
        if self.in_flight >= self.limit():
            self.limit.reached()
        room, ours = self._room(left_s), self._of_caller[caller]
        if ours >= room:
            raise Overloaded(
                f"{self.waiting} waiting, {ours} of this caller: "
                f"room for {max(0, math.floor(room))} more within the deadline",
                retry_after_s=max(1, math.ceil(self._wait_s())),
            )

    def turn(self, caller: str, deadline: Deadline) -> "Turn":
        """Work on a request in the block; gives whether it had to wait for its turn.

        Raises Overloaded as `check` does, and Expired where its turn did not come in time.
        """
        return Turn(self, caller, deadline)

    def enter(self, deadline: Deadline) -> bool:
        """Begin a turn at once; whether that may be."""
        if not (self.free and deadline.left()):
            return False
        self.in_flight += 1
        return True

    async def wait(self, caller: str, deadline: Deadline) -> None:
        """Begin a turn once it comes."""
        self.check(caller, deadline)
        await self._wait(caller, deadline)

    async def pause(self) -> None:
        """Between two pieces of work on a request: where others wait, the event loop reads what has
        come meanwhile, and refuses it, before it goes on with this one and then with the next."""
        if not self._queue:
            return
        self._pausing += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._pausing -= 1

    def leave(self, beside: int, start: float) -> None:
        """End a turn that began at `start`, with `beside` at work."""
        taken = monotonic() - start
        self._latency_s += WEIGHT * (taken - self._latency_s)
        self.limit.observe(taken, max(beside, self.in_flight), self._lag())
        self._ended()
        self._leave()

    @property
    def free(self) -> bool:
        """Whether a request that comes now need not wait."""
        return self.in_flight < self.limit() and not self._queue

    def _between_s(self) -> float:
        """From the end of one turn to the end of the next, as long as somebody waits."""
        return self._latency_s / self.limit() if self._interval_s is None else self._interval_s

    def _ended(self) -> None:
        """A turn has ended. Where the event loop is the bottleneck, turns end more seldom than
        their latencies tell: they wait for it before they begin."""
        now = monotonic()
        if not self._queue:
            self._interval_s = None
        elif self._interval_s is None:
            self._interval_s = self._between_s()
        else:
            self._interval_s += WEIGHT * (now - self._ended_at - self._interval_s)
        self._ended_at = now

    def _wait_s(self) -> float:
        return (self.waiting + 1) * self._between_s()

    def _room(self, left_s: float) -> float:
        """How many more may wait if all are to be answered within that time."""
        spare_s = WAITED * (left_s - self._latency_s)
        in_time = spare_s / self._between_s() if self._latency_s else math.inf
        return min(in_time, self._most_waiting) - self.waiting

    async def _wait(self, caller: str, deadline: Deadline) -> None:
        """Until `_grant` gives a place, which is then counted."""
        if not self._queue:
            self._interval_s = None  # since the last end nobody waited
        loop = asyncio.get_running_loop()
        place: Place = loop.create_future()
        timer = loop.call_later(deadline.left(), _expire, place)
        self._entered += 1
        heapq.heappush(self._queue, (deadline.at, self._entered, place))
        self._of_caller[caller] += 1
        self.waiting += 1
        self._wake()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()  # the turn came, and nobody took it
            raise
        finally:
            timer.cancel()
            self.waiting -= 1
            self._of_caller[caller] -= 1
            if not self._of_caller[caller]:
                del self._of_caller[caller]

    def _leave(self) -> None:
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        """Give a place in the next round of the event loop, if there is one for somebody."""
        if self._queue and not self._waking and self.in_flight < self.limit():
            self._waking = True
            asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        """Give a place to who has the least slack: one a round, so that between two pieces of work
        the loop reads what has come meanwhile, and refuses it."""
        self._waking = False
        while self._queue and self.in_flight < self.limit() and not self._pausing:
            _, _, place = heapq.heappop(self._queue)
            if not place.done():
                self.in_flight += 1
                place.set_result(None)
                break
        self._wake()


class Turn:
    """The context of `Admission.turn`; a class, since a generator costs three times as much."""

    __slots__ = ("_admission", "_beside", "_caller", "_deadline", "_start")

    def __init__(self, admission: Admission, caller: str, deadline: Deadline):
        self._admission, self._caller, self._deadline = admission, caller, deadline

    async def __aenter__(self) -> bool:
        waited = not self._admission.enter(self._deadline)
        if waited:
            await self._admission.wait(self._caller, self._deadline)
        self._beside, self._start = self._admission.in_flight, monotonic()
        return waited

    async def __aexit__(self, *_: object) -> None:
        self._admission.leave(self._beside, self._start)


def _expire(place: Place) -> None:
    if not place.done():
        place.set_exception(Expired("the deadline passed in the queue", retry_after_s=1))
