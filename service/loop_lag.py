"""How late the event loop is: the queue that no counter sees.

A request that the loop reads now may have lain in its socket for as long as the loop was busy.
"""

import asyncio
import math
from time import monotonic

EVERY_S = 0.005
"""Between two looks at the clock."""


class LoopLag:
    """The lag of the running loop, in seconds, from `start` to `stop`."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look at the clock from now on."""
        self._due = monotonic() + EVERY_S
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._look)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def __call__(self) -> float:
        """Seconds that a request read now may have waited for the loop."""
        return max(self._last_s, monotonic() - self._due)

    def _look(self) -> None:
        self._last_s = max(0.0, monotonic() - self._due)
        self.start()
