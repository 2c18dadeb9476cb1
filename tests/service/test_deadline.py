"""`service.deadline`: when a wait for a dependency ends."""

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import pytest
import uvloop

from model_def.config import PRESETS, PackageConfig
from service.backends.triton_endpoint import Endpoint
from service.breaker import Breaker
from service.deadline import Deadline
from service.errors import DependencyFailed
from service.scenes import warm_up
from tests.service.world import SCHEMA

WAIT_S = 0.02


async def wait(answer_s: float, stalled_s: float = 0.0) -> str:
    """What a wait of WAIT_S gives for an answer after `answer_s`, while the event loop stalls."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    loop.call_later(answer_s, answer.set_result, "answered")
    loop.call_soon(time.sleep, stalled_s)
    with Deadline.after(WAIT_S).bound("redis"):
        return await answer


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_answer_that_came_while_the_event_loop_stalled_is_taken(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """The dependency was in time; we were late."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(wait(WAIT_S / 4, stalled_s=3 * WAIT_S)) == "answered"


def test_a_wait_without_an_answer_ends_at_the_deadline() -> None:
    """Not later, as far as the machine lets us."""
    start = time.monotonic()
    with pytest.raises(DependencyFailed, match="redis: timeout"):
        asyncio.run(wait(answer_s=60))
    assert WAIT_S <= time.monotonic() - start < 1


def test_a_wait_past_the_deadline_is_never_begun() -> None:
    """What it would ask costs the dependency time for nobody."""

    async def begin() -> None:
        with Deadline.after(0).bound("redis"):
            raise AssertionError("begun")

    with pytest.raises(DependencyFailed, match="redis: timeout"):
        asyncio.run(begin())


def test_a_triton_that_never_answers_is_waited_for_by_our_own_clock() -> None:
    """gRPC's tells of the end milliseconds late, when it does; here nobody does."""

    class Never:
        async def infer(self, *_: object) -> NoReturn:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        def close(self) -> None: ...

    async def call() -> None:
        config = PackageConfig(version="v", model=PRESETS["tiny"], features=SCHEMA)
        endpoint = Endpoint("127.0.0.1:9", None, "m", config, None, Breaker("triton"))
        endpoint.calls = Never()
        try:
            with pytest.raises(DependencyFailed, match="triton: timeout"):
                await endpoint.score(warm_up(SCHEMA, 1)[0], Deadline.after(WAIT_S))
        finally:
            await endpoint.close()

    asyncio.run(asyncio.wait_for(call(), 10))
