"""Users kept in process: asked for once, never outdated for long, bounded, and gone with Redis."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from redis import Redis

from model_def.batch import Events, pack_static
from model_def.rows import empty_rows
from service.deadline import Deadline
from service.errors import DependencyFailed
from service.features.embedded import embedded_server
from service.features.remembered import RememberedUsers
from service.features.store import FeatureStore, connect, key
from service.features.users import StoredUser, UserCodec
from tests.service.test_items import mgets
from tests.service.world import (
    NOW_MS,
    SCHEMA,
    event,
    opener,
    profile,
    request,
    running,
    settings,
)


@pytest.fixture(scope="module")
def caching(redis_url: str) -> Iterator[httpx.Client]:
    """A gateway that keeps users for an hour."""
    with running(settings(redis_url, user_cache_ttl_s=3600), opener(SCHEMA)) as client:
        yield client


def rank(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/rank", json=request(request_id="r", **body))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_user_is_asked_for_once_until_it_changes(
    caching: httpx.Client, client: httpx.Client, redis: Redis
) -> None:
    """Redis is asked once; what this gateway writes is seen at once, what another writes as soon
    as Redis tells."""
    caching.put("/v1/users/hot", json=profile())
    first = rank(caching, user_id="hot")
    before = mgets(redis)
    assert rank(caching, user_id="hot") == first
    assert mgets(redis) == before

    caching.post("/v1/events", json={"user_id": "hot", "events": [event("a")]})
    second = rank(caching, user_id="hot")
    assert second["items"] != first["items"]

    client.post("/v1/events", json={"user_id": "hot", "events": [event("b", NOW_MS - 5)]})
    expected = rank(client, user_id="hot")
    assert expected["items"] != second["items"]
    while rank(caching, user_id="hot") != expected:
        pass  # until word of the change has come

    redis.delete(key(SCHEMA, "profile", "hot"))
    while "profile" not in rank(caching, user_id="hot")["missing"]:
        pass


def test_what_is_kept_is_asked_for_again_after_the_connection_broke(
    caching: httpx.Client, redis: Redis
) -> None:
    """Nobody told of changes meanwhile, so nothing is taken for current."""
    caching.put("/v1/users/lost", json=profile())
    rank(caching, user_id="lost")
    before = mgets(redis)
    redis.client_kill_filter(_type="normal", skipme=True)
    while mgets(redis) == before:
        assert rank(caching, user_id="lost")["ranked_by"] == "model"


def user(size: int) -> StoredUser:
    rows = {part: empty_rows(SCHEMA.layouts[part], 1) for part in ("profile", "lifelong")}
    lifelong = rows["lifelong"]
    return StoredUser(
        stored_ms=size,
        event_ms=None,
        snapshot_ms=size,
        profile=rows["profile"],
        lifelong=lifelong,
        realtime=lifelong,
        missing={},
        parts=(),
        static={},
        events=Events(lifelong["time_ms"], {}),
        size=size,
    )


def test_users_are_bounded_in_bytes_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently read leave; a changed or old user is remembered, but not as current."""
    now = [1.0]
    monkeypatch.setattr("service.features.remembered.monotonic", lambda: now[0])
    users = RememberedUsers(capacity=100, ttl_s=10.0)
    a, b, c = user(40), user(40), user(40)
    users.keep("a", a)
    users.keep("b", b)
    assert users.current("a") is a
    users.keep("c", c)
    assert (users.get("a"), users.get("b"), users.get("c")) == (a, None, c)
    users.changed("a")
    assert (users.current("a"), users.get("a")) == (None, a)
    now[0] = 11.0
    assert (users.current("c"), users.get("c")) == (None, c)
    users.keep("c", c)
    now[0] = 12.0
    users.any_changed()
    assert (users.current("c"), users.get("c")) == (None, c)
    users.keep("d", user(101))
    assert users.get("d") is None


def test_only_what_has_changed_is_decoded_again() -> None:
    """Equal values are taken from before, with their reason; others are decoded, and damage to
    them is named."""
    codec = UserCodec(SCHEMA)
    profile_value = codec.profile.encode(NOW_MS, empty_rows(SCHEMA.layouts["profile"], 1))
    lifelong_value = codec.lifelong.encode(NOW_MS, empty_rows(SCHEMA.layouts["lifelong"], 3))
    before = codec.decode([profile_value, lifelong_value, b"torn"])
    damaged = lifelong_value[:-1] + bytes([lifelong_value[-1] ^ 1])
    after = codec.decode([bytes(bytearray(profile_value)), damaged, b"torn"], before)
    assert [a is b for a, b in zip(after.parts, before.parts, strict=True)] == [True, False, True]
    assert before.missing == {"realtime": "truncated"}
    assert after.missing == {"lifelong": "corrupt", "realtime": "truncated"}
    assert codec.decode([profile_value, lifelong_value, b"torn"], before) is before


def test_only_what_has_changed_is_packed_again() -> None:
    """A new event leaves the packed static segment as it is; a new snapshot packs it anew."""
    codec, rows = UserCodec(SCHEMA), empty_rows(SCHEMA.layouts["lifelong"], 3)
    rows["time_ms"] = NOW_MS - 1000 * np.arange(3, 0, -1)
    profile_rows = empty_rows(SCHEMA.layouts["profile"], 1)
    values = [codec.profile.encode(NOW_MS, profile_rows), codec.lifelong.encode(NOW_MS, rows), None]
    before = codec.decode(values)
    after = codec.decode([*values[:2], codec.realtime.header], before)
    assert after is not before
    assert after.static is before.static
    later = codec.decode([values[0], codec.lifelong.encode(NOW_MS + 1, rows), None], before)
    expected = pack_static(SCHEMA, NOW_MS + 1, profile_rows, rows)
    assert {n: a.tobytes() for n, a in later.static.items()} == {
        n: a.tobytes() for n, a in expected.items()
    }
    assert before.static["lifelong_numbers"].tobytes() != expected["lifelong_numbers"].tobytes()
    assert before.size == len(values[0]) + len(values[1]) + sum(
        array.nbytes
        for array in (*before.static.values(), before.events.times, *before.events.tables.values())
    )


def test_reads_share_a_connection_and_fail_alone() -> None:
    """Many reads at once are each answered with their own; one that gives up leaves its reply to
    nobody; TLS and passwords aside, a server that went away is found again."""
    asyncio.run(_reads())


async def _reads() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="mtgr-") as directory,
        embedded_server(Path(directory)) as url,
        Redis.from_url(url) as plain,
    ):
        redis = connect(url, 4)
        config = settings(url, redis_timeout_ms=2000)
        store = FeatureStore(redis, SCHEMA, config)
        layouts = SCHEMA.layouts
        for number in range(20):
            profile_row = empty_rows(layouts["profile"], 1)
            profile_row["numbers"] = number
            lifelong = empty_rows(layouts["lifelong"], 3)
            deadline = Deadline.after(10)
            await store.put_user(f"u{number}", NOW_MS, profile_row, lifelong, deadline)
        impatient = [
            asyncio.create_task(store.user("u1", NOW_MS, Deadline.after(10))) for _ in range(5)
        ]
        await asyncio.sleep(0)
        for task in impatient[::2]:
            task.cancel()
        found = await asyncio.gather(
            *[store.user(f"u{number}", NOW_MS, Deadline.after(10)) for number in range(20)]
        )
        numbers = [int(user.profile["numbers"][0, 0]) for user in found]
        assert numbers == list(range(20))
        assert all(not user.missing or "realtime" not in user.missing for user in found)

        for client in plain.client_list():
            if client["resp"] == "3":
                plain.client_kill_filter(_id=client["id"])
        again = await store.user("u7", NOW_MS, Deadline.after(10))
        assert (np.ravel(again.profile["numbers"]).tolist(), dict(again.missing)) == ([7.0], {})
        store.reader.close()
        with pytest.raises(DependencyFailed):
            await store.put_user("late", NOW_MS, profile_row, lifelong, Deadline.after(-1))
        await redis.aclose()
