"""The time a request has left: one object handed down through Redis and the backend."""

import asyncio
from time import monotonic, perf_counter
from types import TracebackType

from msgspec import Struct

from service.errors import DependencyFailed


class Deadline(Struct, frozen=True):
    """A moment on the monotonic clock, in seconds. Every timeout is what is left until it."""

    at: float

    @classmethod
    def after(cls, seconds: float, start: float | None = None) -> "Deadline":
        """The moment `seconds` after `start` (now by default)."""
        return cls((monotonic() if start is None else start) + seconds)

    def left(self) -> float:
        """Seconds until the moment; 0 once it has passed."""
        left_s = self.at - monotonic()
        return left_s if left_s > 0.0 else 0.0

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
    """The context of `Deadline.bound`: what `asyncio.timeout` does, at a third of its cost.

    Where the event loop itself was late, the answer may have come meanwhile: the block is cancelled
    a round later than its timer, when an answer that was there has been taken.
    """

    __slots__ = ("_cancelling", "_deadline", "_dependency", "_loop", "_passed", "_task", "_timer")

    def __init__(self, deadline: Deadline, dependency: str):
        self._deadline, self._dependency = deadline, dependency
        self._passed = False

    def __enter__(self) -> None:
        left_s = self._deadline.left()
        if not left_s:
            raise DependencyFailed(self._dependency, "timeout")
        task = asyncio.current_task()
        assert task is not None  # only a task can be cancelled
        self._task, self._cancelling, self._loop = task, task.cancelling(), task.get_loop()
        self._timer: asyncio.Handle = self._loop.call_later(left_s, self._pass)

    def _pass(self) -> None:
        self._timer = self._loop.call_soon(self._cancel)

    def _cancel(self) -> None:
        self._passed = True
        self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        # Who cancels the task for another reason, before or meanwhile, gets what he wanted.
        ours = self._passed and self._task.uncancel() <= self._cancelling
        if (ours and isinstance(error, asyncio.CancelledError)) or isinstance(error, TimeoutError):
            raise DependencyFailed(self._dependency, "timeout") from None


STAGES = ("read", "queue", "decode", "validate", "features", "pack", "backend", "order", "encode")
"""Of a request that a model ranks, in their order. Others: "fallback", "explain"."""


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
