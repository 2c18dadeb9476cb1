"""Overload and readiness: a request is refused at once, or it is answered."""

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from threading import Event, Semaphore

import httpx
import msgspec
import pytest

from engine_build.runtime.engine import Scores
from model_def.batch import PackedBatch
from service import admission, deadline, limit
from service.admission import Admission
from service.deadline import Deadline
from service.errors import Expired, Overloaded
from service.http.wire import peek_deadline_ms
from service.limit import CALM, CALM_SAMPLES, RENEW_S, WINDOW_S, WINDOW_SAMPLES, Limit
from tests.service.world import SCHEMA, Arithmetic, opener, request, running, settings


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        for module in (admission, deadline, limit):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def taught(gate: Admission, clock: Clock, seconds: float, beside: int = 1) -> None:
    """Have requests take so long, `beside` of them at a time."""
    for _ in range(200):
        async with AsyncExitStack() as stack:
            for _ in range(beside):
                await stack.enter_async_context(gate.turn("past", Deadline.after(1e6)))
            clock.now += seconds


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


def test_a_body_tells_its_deadline_before_it_is_decoded() -> None:
    """In both formats, of any size, wherever it stands; none where there is none."""
    for deadline_ms in (1, 127, 128, 255, 256, 65_535, 65_536, 60_000_000):
        body = {"user_id": "u", "deadline_ms": deadline_ms, "top_k": 3}
        assert peek_deadline_ms(msgspec.json.encode(body), "json") == deadline_ms
        assert peek_deadline_ms(json.dumps(body, indent=1).encode(), "json") == deadline_ms
        assert peek_deadline_ms(msgspec.msgpack.encode(body), "msgpack") == deadline_ms
    for none in ({"deadline_ms": None}, {"user_id": "deadline_ms"}):
        assert peek_deadline_ms(msgspec.json.encode(none), "json") is None
        assert peek_deadline_ms(msgspec.msgpack.encode(none), "msgpack") is None


class Held(Arithmetic):
    """An engine that waits for leave, once warm."""

    def __init__(self) -> None:
        self.holding = False
        self.entered, self.leave = Semaphore(0), Event()
        self.ran = 0

    def run(self, batch: PackedBatch) -> Scores:
        self.ran += 1
        if self.holding:
            self.entered.release()
            self.leave.wait()
        return super().run(batch)


@pytest.fixture
def held(redis_url: str) -> Iterator[tuple[httpx.Client, Held]]:
    """A gateway that takes one request at a time and lets one wait, over an engine to be held."""
    engine = Held()
    config = settings(redis_url, max_in_flight=1, max_waiting=1)
    with running(config, opener(SCHEMA, engine)) as client:
        yield client, engine


def test_one_request_too_many_is_refused_with_a_time_to_come_back(
    held: tuple[httpx.Client, Held],
) -> None:
    """429 and Retry-After, counted, while those that were let in are answered; the refused one's
    body was not even read, for it is none."""
    client, engine = held
    engine.holding = True
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/v1/rank", json=request())
        engine.entered.acquire()
        second = pool.submit(client.post, "/v1/rank", json=request())
        while "mtgr_waiting 1.0" not in client.get("/metrics").text:
            pass
        third = client.post("/v1/rank", content=b"not a body")
        engine.leave.set()
        assert first.result().status_code == second.result().status_code == 200
    assert third.status_code == 429
    assert int(third.headers["retry-after"]) >= 1
    assert third.json()["error"]["type"] == "overloaded"
    counted = 'mtgr_refused_total{reason="overloaded",scene="none"} 1.0'
    assert counted in client.get("/metrics").text


def test_refusals_keep_their_turn_and_their_connection(held: tuple[httpx.Client, Held]) -> None:
    """Each of several requests on a connection is answered in its place, the first before its body
    has come; the last one's wish to close is granted."""
    client, engine = held
    engine.holding = True
    address = (client.base_url.host, client.base_url.port)
    head = "POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n"
    live = "GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    with ThreadPoolExecutor(2) as pool, socket.create_connection(address, timeout=20) as raw:
        first = pool.submit(client.post, "/v1/rank", json=request())
        engine.entered.acquire()
        second = pool.submit(client.post, "/v1/rank", json=request())
        while "mtgr_waiting 1.0" not in client.get("/metrics").text:
            pass
        raw.sendall(f"{head}\r\n".encode())
        answers = raw.recv(1 << 16)
        raw.sendall(f"not body{live}{head}\r\nnot body".encode())
        raw.sendall(f"{live}{head}connection: close\r\n\r\nnot body".encode())
        while part := raw.recv(1 << 16):
            answers += part
        engine.leave.set()
        assert first.result().status_code == second.result().status_code == 200
    statuses = [int(answer[:3]) for answer in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [429, 200, 429, 200, 429]
    assert answers.count(b"connection: close") == 1


def test_who_hangs_up_while_waiting_costs_no_work(held: tuple[httpx.Client, Held]) -> None:
    """The request of a caller that is gone when its turn comes never reaches the engine."""
    client, engine = held
    before = engine.ran
    engine.holding = True
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/rank", json=request())
        engine.entered.acquire()
        body = httpx.Request("POST", client.base_url.join("/v1/rank"), json=request()).content
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address) as gone:
            gone.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\n")
            gone.sendall(f"content-length: {len(body)}\r\n\r\n".encode() + body)
            while "mtgr_waiting 1.0" not in client.get("/metrics").text:
                pass
        engine.leave.set()
        assert first.result().status_code == 200
    while "mtgr_disconnected_total 1.0" not in client.get("/metrics").text:
        pass
    assert engine.ran == before + 1


class Loading(Arithmetic):
    """An engine whose warm-up waits for leave."""

    def __init__(self, leave: Event) -> None:
        self._leave = leave

    def run(self, batch: PackedBatch) -> Scores:
        self._leave.wait()
        return super().run(batch)


def test_nothing_is_ranked_before_the_engine_is_warm(redis_url: str) -> None:
    """Live and not ready: 503 on both until the warm-up has run, and then 200."""
    leave = Event()
    seen: list[tuple[int, int, int]] = []

    def look(client: httpx.Client) -> None:
        seen.append(
            (
                client.get("/health/live").status_code,
                client.get("/health/ready").status_code,
                client.post("/v1/rank", json=request()).status_code,
            )
        )
        leave.set()

    with running(settings(redis_url), opener(SCHEMA, Loading(leave)), while_loading=look) as client:
        assert client.post("/v1/rank", json=request()).status_code == 200
    assert seen == [(200, 503, 503)]
