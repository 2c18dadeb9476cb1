"""Circuit breakers, hedges and retries: a dependency's failures cost no more than they must."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest

from service import breaker as module
from service import deadline
from service.backends.attempts import RESERVE, SHARE, Budget, first_answer
from service.breaker import ENOUGH, FIRST_PAUSE_S, FORGET_S, TRIP, WINDOW, Breaker, State, Unwatched
from service.deadline import Deadline
from service.errors import DependencyFailed


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        for each in (module, deadline):
            monkeypatch.setattr(each, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def call(breaker: Breaker, reason: str | None = None, within_s: float = 1.0) -> str | None:
    """Make a call that fails for a reason, or does not; the reason why it failed."""
    try:
        with breaker.call(Deadline.after(within_s)):
            if reason:
                raise DependencyFailed("x", reason)
    except DependencyFailed as failure:
        return failure.reason
    return None


def opened(clock: Clock) -> Breaker:
    breaker = Breaker("x")
    for _ in range(TRIP):
        call(breaker, "timeout")
    assert breaker.state is State.OPEN
    return breaker


def test_it_opens_on_many_recent_failures_only(clock: Clock) -> None:
    """Half of the last calls failing opens it; fewer, or long ago, or by our own bound, do not."""
    few, old, ours = Breaker("x"), Breaker("x"), Breaker("x")
    for _ in range(WINDOW):
        for reason in ("error", None, None):
            call(few, reason)
        call(old, "error")
        clock.now += FORGET_S / (TRIP - 1)
        call(ours, "queue_full")
    assert {few.state, old.state, ours.state} == {State.CLOSED}
    assert opened(clock).state is State.OPEN


def test_one_call_tries_after_a_pause_that_doubles(clock: Clock) -> None:
    """While open nothing is asked; then one call at a time is, and decides."""
    breaker = opened(clock)
    assert call(breaker) == "circuit_open"
    clock.now += FIRST_PAUSE_S
    with breaker.call(Deadline.after(1)):
        assert breaker.state is State.HALF_OPEN
        assert call(breaker) == "circuit_open"
    assert breaker.state is State.CLOSED

    breaker = opened(clock)
    clock.now += FIRST_PAUSE_S
    assert call(breaker, "error") == "error"
    clock.now += FIRST_PAUSE_S
    assert call(breaker) == "circuit_open"
    clock.now += FIRST_PAUSE_S
    assert call(breaker) is None
    assert breaker.state is State.CLOSED


def test_a_try_that_is_given_up_decides_nothing(clock: Clock) -> None:
    """Its caller went away: the next call tries."""
    breaker = opened(clock)
    clock.now += FIRST_PAUSE_S
    with pytest.raises(asyncio.CancelledError), breaker.call(Deadline.after(1)):
        raise asyncio.CancelledError
    assert call(breaker) is None
    assert breaker.state is State.CLOSED


def test_callers_in_a_hurry_open_nothing(clock: Clock) -> None:
    """A timeout counts only where the call had twice the time that answers mostly take."""
    breaker = Breaker("x")
    for _ in range(ENOUGH):
        with breaker.call(Deadline.after(1)):
            clock.now += 0.1
    for _ in range(WINDOW):
        call(breaker, "timeout", within_s=0.15)
    assert breaker.state is State.CLOSED
    for _ in range(WINDOW):
        call(breaker, "timeout", within_s=0.25)
    assert breaker.state is State.OPEN


class Server:
    """Answers with its name when told to, and is known to take a millisecond."""

    def __init__(self, name: str):
        self.name, self.breaker = name, Breaker("x")
        self.asked, self.cancelled = 0, 0
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        for _ in range(ENOUGH):
            call(self.breaker)

    async def ask(self) -> str:
        self.asked += 1
        try:
            return await self.answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def run(law: Callable[[Server, Server, Budget], object]) -> None:
    async def prepared() -> None:
        await law(Server("a"), Server("b"), Budget())  # type: ignore[misc]  # a coroutine function

    asyncio.run(prepared())


async def ask(servers: list[Server], budget: Budget) -> str:
    return await first_answer(servers, Server.ask, Deadline.after(5), budget, Unwatched())


def test_a_slow_server_is_hedged_and_the_loser_cancelled() -> None:
    """Once it is slower than it mostly is, the next is asked, and the first answer wins."""

    async def law(a: Server, b: Server, budget: Budget) -> None:
        b.answer.set_result("b")
        assert await ask([a, b], budget) == "b"
        assert (a.asked, a.cancelled) == (1, 1)

    run(law)


def test_a_failure_is_asked_of_the_next_server_but_not_a_futile_one() -> None:
    """A failing server's request goes to the next one; where the time is up, or the request itself
    is refused, nowhere."""

    async def law(a: Server, b: Server, budget: Budget) -> None:
        a.answer.set_exception(DependencyFailed("triton", "error"))
        b.answer.set_result("b")
        assert await ask([a, b], budget) == "b"
        for futile in ("timeout", "rejected"):
            c = Server("c")
            c.answer.set_exception(DependencyFailed("triton", futile))
            with pytest.raises(DependencyFailed, match=futile):
                await ask([c, b], budget)
        assert b.asked == 1

    run(law)


def test_asking_again_is_a_bounded_share() -> None:
    """When every first answer fails, some saved-up requests and a tenth of the rest are retried."""

    async def law(a: Server, b: Server, budget: Budget) -> None:
        for _ in range(200):
            a.answer = asyncio.get_running_loop().create_future()
            a.answer.set_exception(DependencyFailed("triton", "error"))
            b.answer = asyncio.get_running_loop().create_future()
            b.answer.set_result("b")
            with suppress(DependencyFailed):
                assert await ask([a, b], budget) == "b"
        assert a.asked == 200
        assert b.asked == pytest.approx(RESERVE + SHARE * 200, abs=2)

    run(law)
