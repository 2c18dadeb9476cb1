"""A dependency that keeps failing is left alone for a while, so that nobody waits for it in vain.

closed --too many of the last calls failed--> open --a pause--> half-open: one call tries
  ^                                            ^                  |          |
  +------------------it answers----------------+--it fails, twice the pause--+
"""

import random
from collections import deque
from enum import IntEnum
from time import monotonic
from types import TracebackType
from typing import Protocol

from service.deadline import Deadline
from service.errors import DependencyFailed

WINDOW, TRIP = 20, 10
"""It opens once so many of the last calls failed."""

FORGET_S = 10.0
"""Calls longer ago say nothing."""

FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 2.0
"""Open for so long, doubling; less up to a tenth, so that gateways do not try in step."""

LATENCIES, ENOUGH = 100, 20
"""Latencies of the last answers that are kept, and how many tell a percentile."""

OURS = ("queue_full", "rejected")
"""Reasons that say nothing of the dependency: our own bound, or a request that it may refuse."""


class State(IntEnum):
    """As the metric shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Watch(Protocol):
    """Who counts what happens to a dependency; `server` is one of several, or empty."""

    def breaker(self, server: str, state: State) -> None:
        """The breaker is in `state` from now on."""

    def failed(self, server: str, reason: str) -> None:
        """A call failed."""

    def asked_again(self, why: str) -> None:
        """Another server was asked too (retry, hedge), or not for want of budget (exhausted)."""


class Unwatched:
    """Nobody counts."""

    def breaker(self, server: str, state: State) -> None: ...
    def failed(self, server: str, reason: str) -> None: ...
    def asked_again(self, why: str) -> None: ...


class Breaker:
    """Of one server of a dependency: what became of the last calls, and how long they took."""

    def __init__(self, dependency: str, server: str = "", watch: Watch | None = None):
        self._dependency, self._server = dependency, server
        self._watch = watch or Unwatched()
        self._calls: deque[tuple[float, bool]] = deque(maxlen=WINDOW)
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._until, self._pause_s = 0.0, FIRST_PAUSE_S
        self._trying = False
        self.state = State.CLOSED
        self._watch.breaker(server, self.state)

    @property
    def lets_through(self) -> bool:
        """Whether a call would be made."""
        if self.state is State.CLOSED:
            return True
        return not self._trying and monotonic() >= self._until

    def check(self) -> None:
        """Raises DependencyFailed(dependency, "circuit_open") where no call would be made."""
        if not self.lets_through:
            self._watch.failed(self._server, "circuit_open")
            raise DependencyFailed(self._dependency, "circuit_open")

    def p95_s(self) -> float | None:
        """Of the last answers, seconds; None while there are too few."""
        if len(self._latencies) < ENOUGH:
            return None
        return sorted(self._latencies)[int(0.95 * len(self._latencies))]

    def call(self, deadline: Deadline) -> "Call":
        """Make a call in the block; raises as `check` does.

        A timeout counts where the call had time enough: a caller in a hurry is no failure of the
        dependency. A call that is cancelled counts as nothing.
        """
        return Call(self, deadline)

    def begin(self) -> bool:
        """Let a call through; whether it is the one that tries. Raises as `check` does."""
        self.check()
        trying = self.state is not State.CLOSED
        if trying:
            self._trying = True
            self._enter(State.HALF_OPEN)
        return trying

    def end(
        self, trying: bool, taken_s: float, given_s: float, error: BaseException | None
    ) -> None:
        """What became of a call, which took and was given so long."""
        if isinstance(error, DependencyFailed):
            self._watch.failed(self._server, error.reason)
            hurried = error.reason == "timeout" and given_s < 2 * (self.p95_s() or 0.0)
            if error.reason not in OURS and not hurried:
                self._ended(trying, failed=True)
        elif error is None:
            self._latencies.append(taken_s)
            self._ended(trying, failed=False)
        if trying:
            self._trying = False

    def _ended(self, trying: bool, *, failed: bool) -> None:
        now = monotonic()
        if trying:
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S) if failed else FIRST_PAUSE_S
            self._enter(State.OPEN if failed else State.CLOSED)
        elif self.state is State.CLOSED:  # else it began before the breaker opened
            self._calls.append((now, failed))
            if failed and sum(bad and at > now - FORGET_S for at, bad in self._calls) >= TRIP:
                self._enter(State.OPEN)

    def _enter(self, state: State) -> None:
        if state is State.OPEN:
            jitter = 1 - 0.1 * random.random()
            self._until = monotonic() + jitter * self._pause_s
            self._calls.clear()
        self.state = state
        self._watch.breaker(self._server, state)


class Call:
    """The context of `Breaker.call`; a class, since a generator costs three times as much."""

    __slots__ = ("_breaker", "_deadline", "_given_s", "_start", "_trying")

    def __init__(self, breaker: Breaker, deadline: Deadline):
        self._breaker, self._deadline = breaker, deadline

    def __enter__(self) -> None:
        self._trying = self._breaker.begin()
        self._start, self._given_s = monotonic(), self._deadline.left()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._breaker.end(self._trying, monotonic() - self._start, self._given_s, error)
