"""A clock that tests move, and admission that has a past on it."""

from contextlib import AsyncExitStack

import pytest

from service import admission, deadline, limit
from service.admission import Admission
from service.deadline import Deadline


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        for module in (admission, deadline, limit):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)


async def taught(gate: Admission, clock: Clock, seconds: float, beside: int = 1) -> None:
    """Have requests take so long, `beside` of them at a time."""
    for _ in range(200):
        async with AsyncExitStack() as stack:
            for _ in range(beside):
                await stack.enter_async_context(gate.turn("past", Deadline.after(1e6)))
            clock.now += seconds
