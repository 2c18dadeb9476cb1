"""Behaviour: each event counts once, the sequence stays bounded, acknowledged means kept."""

import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.features.codec import LogCodec
from service.features.store import KEPT_TIMES_CAP, key
from service.http.validate import event_hash
from tests.service.gateway_process import gateway_process
from tests.service.world import NOW_MS, SCHEMA, event

CODEC = LogCodec(SCHEMA.layouts["realtime"], SCHEMA.layout_hash)


def stored(redis: Redis, user_id: str) -> list[int]:
    """Event ids of a user's sequence, as they lie in Redis."""
    value = redis.get(key(SCHEMA, "rt", user_id))
    assert value is None or isinstance(value, bytes)
    rows, damage = CODEC.decode(value)
    assert damage is None
    return [int(event_id) for event_id in rows["event_id"]]


def send(client: httpx.Client, user_id: str, *ids: str) -> dict[str, int]:
    body = {"user_id": user_id, "events": [event(i) for i in ids]}
    response = client.post("/v1/events", json=body)
    assert response.status_code == 200, response.text
    counts: dict[str, int] = response.json()
    return counts


def test_an_event_sent_twice_counts_once(client: httpx.Client, redis: Redis, user_id: str) -> None:
    """Within a body and across bodies, by the caller's id."""
    assert send(client, user_id, "a", "b", "a") == {"appended": 2, "repeated": 1, "labels": 0}
    assert send(client, user_id, "b", "c") == {"appended": 1, "repeated": 1, "labels": 0}
    assert stored(redis, user_id) == [event_hash(i) for i in "abc"]


def test_a_sequence_keeps_the_last_of_its_events_and_expires(
    client: httpx.Client, redis: Redis, user_id: str
) -> None:
    """At most four times the cap, the oldest gone first, under a time to live."""
    most = KEPT_TIMES_CAP * SCHEMA.realtime_cap
    ids = [str(i) for i in range(most + 7)]
    for i in ids:
        send(client, user_id, i)
    assert stored(redis, user_id) == [event_hash(i) for i in ids[-most:]]
    assert 0 < redis.ttl(key(SCHEMA, "rt", user_id)) <= 7 * 24 * 3600


def test_appending_survives_a_lost_script_a_torn_tail_and_an_old_layout(
    client: httpx.Client, redis: Redis, user_id: str
) -> None:
    """The script is loaded again; a torn record is dropped; another layout starts over."""
    send(client, user_id, "a")
    redis.script_flush()
    send(client, user_id, "b")
    name = key(SCHEMA, "rt", user_id)
    redis.append(name, b"torn")
    send(client, user_id, "c")
    assert stored(redis, user_id) == [event_hash(i) for i in "abc"]
    redis.setrange(name, 0, b"another!")
    send(client, user_id, "d")
    assert stored(redis, user_id) == [event_hash("d")]


def test_labels_go_to_the_stream_with_the_request_they_answer(
    client: httpx.Client, redis: Redis, user_id: str
) -> None:
    """An exposure is no behaviour; a click with features is both."""
    label = {"request_id": "r1", "item_id": 7, "action": "exposure"}
    events = [
        {"event_id": "seen", "timestamp": NOW_MS, "label": label},
        event("clicked") | {"label": label | {"action": "click"}},
    ]
    response = client.post("/v1/events", json={"user_id": user_id, "events": events})
    assert response.json() == {"appended": 1, "repeated": 0, "labels": 2}
    newest = redis.xrevrange("mtgr:market:labels", count=2)
    entries = [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in newest]
    assert [(e["event_id"], e["action"]) for e in entries] == [
        ("clicked", "click"),
        ("seen", "exposure"),
    ]
    assert all(
        (e["user_id"], e["request_id"], e["item_id"]) == (user_id, "r1", "7") for e in entries
    )


def test_no_acknowledged_event_is_lost_when_everything_is_killed() -> None:
    """kill -9 of the gateway, then of Redis too, while events arrive: what got 200 is there."""
    acknowledged: list[tuple[str, str]] = []
    enough = Event()

    def keep_sending(client: httpx.Client, worker: int) -> None:
        count = 0
        while True:
            user_id, event_id = f"{worker} {count // 10}", f"{worker}/{count}"
            try:
                send(client, user_id, event_id)
            except httpx.TransportError:
                return
            acknowledged.append((user_id, event_id))
            count += 1
            if len(acknowledged) >= 150:
                enough.set()

    with tempfile.TemporaryDirectory(prefix="mtgr-") as name, ThreadPoolExecutor(4) as pool:
        directory = Path(name)
        url = f"unix://{directory / 'valkey.sock'}"
        with gateway_process(directory) as (client, process):
            workers = [pool.submit(keep_sending, client, i) for i in range(4)]
            assert enough.wait(60)
            process.kill()
            for worker in workers:
                worker.result()
        with gateway_process(directory) as (client, process), Redis.from_url(url) as redis:
            assert_all_stored(redis, acknowledged)  # by the server that outlived its gateway
            server = redis.info("server")["process_id"]
            process.kill()
            os.kill(server, signal.SIGKILL)
        with gateway_process(directory) as (client, _), Redis.from_url(url) as redis:
            assert redis.info("server")["process_id"] != server
            assert_all_stored(redis, acknowledged)  # by a server that read the append-only file
            assert send(client, *acknowledged[-1])["repeated"] == 1
        with Redis.from_url(url) as redis, pytest.raises(RedisConnectionError):
            redis.ping()  # a gateway that ends in order takes its server with it


def assert_all_stored(redis: Redis, acknowledged: list[tuple[str, str]]) -> None:
    assert len(acknowledged) >= 150
    for user_id in {user_id for user_id, _ in acknowledged}:
        ours = {event_hash(e) for u, e in acknowledged if u == user_id}
        assert ours <= set(stored(redis, user_id))
