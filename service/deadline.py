"""The time a request has left: one object handed down through Redis and the backend."""

import asyncio
from dataclasses import dataclass
from time import monotonic, perf_counter
from types import TracebackType

from service.errors import DependencyFailed


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock, in seconds. Every timeout is what is left until it."""

    at: float

    @classmethod
    def after(cls, seconds: float, start: float | None = None) -> "Deadline":
        """The moment `seconds` after `start` (now by default)."""
        return cls((monotonic() if start is None else start) + seconds)

    def left(self) -> float:
        """Seconds until the moment; 0 once it has passed."""
        return max(0.0, self.at - monotonic())

    def within(self, seconds: float) -> "Deadline":
        """The earlier of this moment and `seconds` from now."""
        return Deadline(min(self.at, monotonic() + seconds))

    def before(self, seconds: float) -> "Deadline":
        """The moment `seconds` earlier: what a dependency gets when answering still takes time."""
        return Deadline(self.at - seconds)

    def bound(self, dependency: str) -> "Bound":
        """Cancel the block at the moment, or never start it once it has passed; raises
        DependencyFailed(dependency, "timeout")."""
        return Bound(self, dependency)


class Bound:
    """The context of `Deadline.bound`; a class, since a generator costs as much as the timer.

    Where the event loop itself was late, the answer may have come meanwhile: the block is cancelled
    a round later than its timer, when an answer that was there has been taken.
    """

    __slots__ = ("_deadline", "_dependency", "_timeout", "_timer")

    def __init__(self, deadline: Deadline, dependency: str):
        self._deadline, self._dependency = deadline, dependency

    async def __aenter__(self) -> None:
        left_s = self._deadline.left()
        if not left_s:
            raise DependencyFailed(self._dependency, "timeout")
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        # A moment that has passed is the next round of the loop.
        self._timer = asyncio.get_running_loop().call_later(left_s, self._timeout.reschedule, 0.0)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise DependencyFailed(self._dependency, "timeout") from None
        if isinstance(error, TimeoutError):  # the block's own patience has ended
            raise DependencyFailed(self._dependency, "timeout") from None


class Stages:
    """Where a request's time went. `mark` closes a stage, so the stages add up to the whole."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def mark(self, stage: str) -> None:
        """Everything since the previous mark was `stage`; the same stage twice adds."""
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def server_timing(self) -> str:
        """The `Server-Timing` header (W3C), in milliseconds, with the total."""
        parts = [f"{stage};dur={1e3 * taken:.3f}" for stage, taken in self.seconds.items()]
        return ", ".join([*parts, f"total;dur={1e3 * sum(self.seconds.values()):.3f}"])
