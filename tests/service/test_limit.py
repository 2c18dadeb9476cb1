"""How many requests are worked on at a time: the fewest that keep the bottleneck busy."""

import asyncio

from service.admission import Admission
from service.deadline import Deadline
from service.limit import CALM, CALM_SAMPLES, RENEW_S, WINDOW_S, WINDOW_SAMPLES, Limit
from tests.service.clock import Clock, taught


def observe(limit: Limit, clock: Clock, seconds: float, beside: int, windows: int = 1) -> None:
    for _ in range(windows):
        clock.now += WINDOW_S
        for _ in range(WINDOW_SAMPLES):
            limit.observe(seconds, beside)


def test_the_limit_finds_the_knee(clock: Clock) -> None:
    """Of a service that works on 8 at a time, it comes to keep 8 busy without a long queue; of one
    without such a bound, it grows as far as it may; unasked, it stays."""
    bounded, boundless, unasked = Limit(256), Limit(256), Limit(256)
    for each in (bounded, boundless, unasked):
        for _ in range(CALM_SAMPLES):
            each.observe(0.010, 1)
    for _ in range(80):  # less than RENEW_S in all
        for each, seconds in ((bounded, 0.010 * max(1, bounded() / 8)), (boundless, 0.010)):
            each.reached()
            observe(each, clock, seconds, CALM + 1)
        observe(unasked, clock, 0.010, 1)
    assert 8 <= bounded() <= 24
    assert boundless() == 256
    assert unasked() == CALM


def test_a_loop_that_is_always_late_has_less_to_do(clock: Clock) -> None:
    """Whatever latencies say, a standing lag lowers the limit; one that comes and goes does not."""
    standing, passing = Limit(256), Limit(256)
    for each in (standing, passing):
        observe(each, clock, 0.010, 1, windows=CALM_SAMPLES // WINDOW_SAMPLES)
        for _ in range(40):
            each.reached()
            observe(each, clock, 0.010, 50)
        for _ in range(40):
            each.reached()
            each.observe(0.010, 50, 0.0 if each is passing else 0.020)
            for _ in range(WINDOW_SAMPLES):
                clock.now += WINDOW_S / WINDOW_SAMPLES
                each.observe(0.010, 50, 0.020)
    assert standing() < 8
    assert passing() == 256


def test_a_limit_that_is_not_in_the_way_stays(clock: Clock) -> None:
    """Places are given one a round: with work this short fewer are taken than there are, and who
    waits does not wait for the limit. Else it would grow until it held nobody back."""

    async def law() -> None:
        gate = Admission(256, 1000)
        await taught(gate, clock, 0.001)

        async def work() -> None:
            async with gate.turn("a", Deadline.after(1e6)):
                clock.now += 0.001
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as flood:
            for _ in range(10):
                flood.create_task(work())
            for _ in range(int(50 * WINDOW_S / 0.001)):
                await asyncio.sleep(0)
                assert gate.waiting
                flood.create_task(work())
        assert gate.limit() <= 2 * CALM

    asyncio.run(law())


def test_the_calm_latency_is_measured_anew_under_lasting_pressure(clock: Clock) -> None:
    """After a while without calm, few are worked on at a time until it is known again."""
    limit = Limit(256)
    observe(limit, clock, 0.010, 1, windows=CALM_SAMPLES // WINDOW_SAMPLES)
    for _ in range(int(RENEW_S / WINDOW_S) + 9):
        limit.reached()
        observe(limit, clock, 0.010, 50)
    assert limit() == CALM
    observe(limit, clock, 0.010, CALM, windows=CALM_SAMPLES // WINDOW_SAMPLES)
    assert limit() > CALM
