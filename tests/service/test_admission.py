"""Overload and readiness: a request is refused at once, or it is answered."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Semaphore

import httpx
import pytest

from engine_build.runtime.engine import Scores
from model_def.batch import PackedBatch
from service import admission, deadline
from service.admission import Admission
from service.deadline import Deadline
from service.errors import Overloaded
from tests.service.world import SCHEMA, Arithmetic, opener, request, running, settings


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        for module in (admission, deadline):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_estimated_wait_follows_what_requests_took(clock: Clock) -> None:
    """Ten in flight of a service that answers one each 20 ms wait 200 ms."""
    gate = Admission(100)
    for _ in range(200):
        with gate.slot():
            clock.now += 0.02
    slots = [gate.slot() for _ in range(10)]
    for slot in slots:
        slot.__enter__()
    assert gate.wait_s() == pytest.approx(0.2, rel=0.01)
    gate.check(Deadline.after(0.3))
    with pytest.raises(Overloaded) as refused:
        gate.check(Deadline.after(0.1))
    assert refused.value.retry_after_s == 1


def test_a_lone_request_is_always_let_in(clock: Clock) -> None:
    """However slow the past, with nobody ahead there is no wait: refusing cannot feed itself."""
    gate = Admission(100)
    with gate.slot():
        clock.now += 50.0
    with gate.slot():
        gate.check(Deadline.after(0.01))


def test_places_are_given_back(clock: Clock) -> None:
    """A request that ends, in whatever way, makes room for the next."""
    gate = Admission(1)
    with pytest.raises(ValueError, match="x"), gate.slot():
        raise ValueError("x")
    with gate.slot(), pytest.raises(Overloaded), gate.slot():
        raise AssertionError
    with gate.slot():
        assert gate.in_flight == 1


class Held(Arithmetic):
    """An engine that waits for leave, once warm."""

    def __init__(self) -> None:
        self.holding = False
        self.entered, self.leave = Semaphore(0), Event()

    def run(self, batch: PackedBatch) -> Scores:
        if self.holding:
            self.entered.release()
            self.leave.wait()
        return super().run(batch)


@pytest.fixture
def held(redis_url: str) -> Iterator[tuple[httpx.Client, Held]]:
    """A gateway that takes one request at a time, over an engine that can be held."""
    engine = Held()
    with running(settings(redis_url, max_in_flight=1), opener(SCHEMA, engine)) as client:
        yield client, engine


def test_one_request_too_many_is_refused_with_a_time_to_come_back(
    held: tuple[httpx.Client, Held],
) -> None:
    """429 and Retry-After, counted, while the request that was let in is answered."""
    client, engine = held
    engine.holding = True
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/rank", json=request())
        engine.entered.acquire()
        second = client.post("/v1/rank", json=request())
        engine.leave.set()
        assert first.result().status_code == 200
    assert second.status_code == 429
    assert int(second.headers["retry-after"]) >= 1
    assert second.json()["error"]["type"] == "overloaded"
    counted = 'mtgr_refused_total{reason="overloaded",scene="none"} 1.0'
    assert counted in client.get("/metrics").text


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
