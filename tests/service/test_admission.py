"""Who gets in, and when: a request is refused at once, or it gets its turn."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from service.admission import Admission
from service.deadline import Deadline
from service.errors import Expired, Overloaded
from tests.service.clock import Clock, taught


async def busy(gate: Admission, stack: AsyncExitStack) -> None:
    """Have as many requests at work as may be."""
    while gate.in_flight < gate.limit():
        await stack.enter_async_context(gate.turn("busy", Deadline.after(1e6)))


async def serve(gate: Admission, caller: str, deadline: Deadline, done: list[str]) -> None:
    async with gate.turn(caller, deadline):
        done.append(caller)


def test_what_could_not_be_answered_in_time_is_refused_before_its_body(clock: Clock) -> None:
    """With every place taken by work of 30 ms, one ends each 30 / limit ms: a request whose time
    is shorter than the work itself is refused, and one with more time is let wait."""

    async def law() -> None:
        gate = Admission(3, 1000)
        await taught(gate, clock, 0.030, beside=3)
        async with AsyncExitStack() as stack:
            await busy(gate, stack)
            gate.check("a", Deadline.after(0.045))
            with pytest.raises(Overloaded) as refused:
                gate.check("a", Deadline.after(0.025))
            assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
            with pytest.raises(Expired):
                gate.check("a", Deadline.after(0.0))

    asyncio.run(law())


def test_a_free_place_is_given_however_slow_the_past(clock: Clock) -> None:
    """Nobody is ahead, so there is no wait: refusing cannot feed itself."""

    async def law() -> None:
        gate = Admission(3, 1000)
        await taught(gate, clock, 50.0)
        gate.check("a", Deadline.after(0.01))

    asyncio.run(law())


def test_the_least_slack_goes_first_and_the_expired_cost_nothing(clock: Clock) -> None:
    """Those who wait are served by deadline; one whose deadline passes is refused unserved."""

    async def law() -> None:
        gate, done = Admission(1, 1000), list[str]()
        async with gate.turn("first", Deadline.after(1e6)):
            waiting = [
                asyncio.create_task(serve(gate, name, Deadline.after(left), done))
                for name, left in (("late", 60), ("never", 0.02), ("soon", 30), ("later", 90))
            ]
            with pytest.raises(Expired):
                await waiting[1]
            assert (gate.in_flight, gate.waiting) == (1, 3)
        await asyncio.gather(waiting[0], *waiting[2:])
        assert done == ["soon", "late", "later"]
        assert (gate.in_flight, gate.waiting) == (0, 0)

    asyncio.run(law())


def test_the_estimate_follows_a_slow_loop(clock: Clock) -> None:
    """Where turns end more seldom than the work in them takes, the wait is told by their ends."""

    async def law() -> None:
        gate = Admission(1, 1000)
        await taught(gate, clock, 0.001)

        async def work() -> None:
            async with gate.turn("a", Deadline.after(1e6)):
                pass
            clock.now += 0.010  # the loop is at other work until the next turn

        async with gate.turn("first", Deadline.after(1e6)):
            tasks = [asyncio.create_task(work()) for _ in range(100)]
            await asyncio.sleep(0)
        while gate.waiting > 30:
            await asyncio.sleep(0)
        assert gate.wait_s() == pytest.approx(0.010 * (gate.waiting + 1), rel=0.05)
        await asyncio.gather(*tasks)

    asyncio.run(law())


def test_time_in_which_nobody_waited_is_no_wait(clock: Clock) -> None:
    """A minute between two queues is not taken for what a turn takes, though the first ended with
    one whose deadline had passed, and a turn that nobody was given."""

    async def law() -> None:
        gate, done = Admission(1, 1000), list[str]()
        await taught(gate, clock, 0.001)
        async with gate.turn("a", Deadline.after(1e6)):
            with pytest.raises(Expired):
                await serve(gate, "b", Deadline.after(0.02), done)
            clock.now += 0.001
        await asyncio.sleep(0)
        assert gate.free
        clock.now += 60
        async with gate.turn("c", Deadline.after(1e6)):
            waiting = asyncio.create_task(serve(gate, "d", Deadline.after(1e6), done))
            await asyncio.sleep(0)
            clock.now += 0.001
        assert gate.wait_s() == pytest.approx(0.001 * (gate.waiting + 1))
        await waiting

    asyncio.run(law())


def test_a_flood_leaves_room_for_others(clock: Clock) -> None:
    """One caller fills at most half of the time that there is; another's request finds a place,
    until as many of its own wait as room is left."""

    async def law() -> None:
        gate = Admission(3, 1000)
        await taught(gate, clock, 0.010, beside=3)
        async with AsyncExitStack() as stack:
            await busy(gate, stack)
            patience = Deadline.after(0.410)  # half of 400 ms: 60 requests, ends every 10 / 3 ms
            waiting: list[asyncio.Task[None]] = []

            async def flood(caller: str) -> int:
                for count in range(1000):
                    try:
                        gate.check(caller, patience)
                    except Overloaded:
                        return count
                    waiting.append(asyncio.create_task(serve(gate, caller, patience, [])))
                    await asyncio.sleep(0)
                raise AssertionError("never refused")

            assert await flood("flood") == pytest.approx(30, abs=1)
            assert await flood("other") == pytest.approx(15, abs=1)
            assert await flood("third") == pytest.approx(8, abs=1)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        assert (gate.in_flight, gate.waiting) == (0, 0)

    asyncio.run(law())


def test_places_are_given_back(clock: Clock) -> None:
    """A request that ends, in whatever way, makes room for the next; so does one that is cancelled
    just as its turn comes."""

    async def law() -> None:
        gate, done = Admission(1, 10), list[str]()
        with pytest.raises(ValueError, match="x"):
            async with gate.turn("a", Deadline.after(1)):
                raise ValueError("x")
        async with gate.turn("a", Deadline.after(1)):
            given_up = asyncio.create_task(serve(gate, "b", Deadline.after(1), done))
            waiting = asyncio.create_task(serve(gate, "c", Deadline.after(2), done))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert gate.in_flight == 1
        given_up.cancel()  # after its turn was given, before it took it
        await asyncio.gather(given_up, waiting, return_exceptions=True)
        assert done == ["c"]
        assert gate.in_flight == 0

    asyncio.run(law())


def test_between_two_pieces_of_work_the_loop_reads_and_nobody_begins(clock: Clock) -> None:
    """As long as somebody waits, each round of the event loop has one piece of one request."""

    async def law() -> None:
        gate, done, rounds = Admission(2, 1000), list[tuple[str, int]](), 0
        await taught(gate, clock, 0.001)

        async def work(name: str) -> None:
            async with gate.turn("a", Deadline.after(1e6)):
                if name in "ab":
                    await asyncio.sleep(0)  # until the others wait
                done.append((name, rounds))
                await gate.pause()
                done.append((name, rounds))

        requests = [asyncio.create_task(work(name)) for name in "abcdefgh"]
        while not all(request.done() for request in requests):
            await asyncio.sleep(0)
            rounds += 1
        waited = done[4:]
        assert [name for name, _ in waited] == list("ccddeeffgghh")
        assert len({at for _, at in waited[:-2]}) == len(waited[:-2])

    asyncio.run(law())
