"""Asking another server: after a failure, or once the first is slower than it mostly is.

The tail of one server is seldom the tail of another (Dean and Barroso, "The Tail at Scale",
2013), and a failure of one seldom one of all. Both cost a second request, so both draw on one
budget, a share of the requests: when everything is slow, nothing is asked twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from service.breaker import Breaker, Watch
from service.deadline import Deadline
from service.errors import DependencyFailed

SHARE, RESERVE = 0.1, 10.0
"""Requests that may be asked again: a share of all, and so many that were saved up."""

FUTILE = ("timeout", "rejected")
"""Failures that another server would not mend: no time is left, or the request is at fault."""


class Budget:
    """What may be asked again."""

    def __init__(self) -> None:
        self._saved = RESERVE

    def save(self) -> None:
        """A request came."""
        self._saved = min(RESERVE, self._saved + SHARE)

    def spend(self) -> bool:
        """Whether one may be asked again."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


class Server(Protocol):
    """One of several that give the same answer."""

    breaker: Breaker


S = TypeVar("S", bound=Server)
Answer = TypeVar("Answer")


async def first_answer(
    servers: Sequence[S],
    ask: Callable[[S], Awaitable[Answer]],
    deadline: Deadline,
    budget: Budget,
    watch: Watch,
) -> Answer:
    """The first answer of the servers, asked in this order and no more of them than needed; what
    is then still on its way is cancelled. Raises the last DependencyFailed."""
    budget.save()
    if len(servers) == 1:
        return await ask(servers[0])
    left = list(servers)
    running: set[asyncio.Future[Answer]] = set()
    failure = DependencyFailed("triton", "unavailable")

    def start() -> float | None:
        """Ask the next server; seconds after which it is slow."""
        server = left.pop(0)
        running.add(asyncio.ensure_future(ask(server)))
        return server.breaker.p95_s()

    def again(why: str) -> float | None:
        if not budget.spend():
            left.clear()
            watch.asked_again("exhausted")
            return None
        watch.asked_again(why)
        return start()

    patience_s = start()
    try:
        while running:
            timeout = patience_s if left else None
            done, _ = await asyncio.wait(
                running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                patience_s = again("hedge")
                continue
            running -= done
            for ended in done:
                try:
                    return ended.result()
                except DependencyFailed as error:
                    failure = error
            if not running and left and failure.reason not in FUTILE and deadline.left():
                patience_s = again("retry")
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    raise failure
