"""Overload over HTTP: a refusal costs nobody a body, a connection or the engine's time."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Semaphore
from time import sleep

import httpx
import msgspec
import pytest

from engine_build.runtime.engine import Scores
from model_def.batch import PackedBatch
from service.http.wire import peek_deadline_ms
from tests.service.world import SCHEMA, Arithmetic, opener, request, running, settings


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


def test_a_slow_body_has_the_time_that_it_asks_for(redis_url: str) -> None:
    """What a request takes to arrive is held against its own deadline, not against the default."""
    body = msgspec.json.encode(request(deadline_ms=10_000))
    head = f"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    default_s = 0.5
    config = settings(redis_url, default_deadline_ms=int(1e3 * default_s))
    with running(config, opener(SCHEMA)) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=20) as raw:
            raw.sendall(head.encode() + body[:9])
            sleep(default_s)
            raw.sendall(body[9:])
            assert raw.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


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
