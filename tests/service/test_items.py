"""Item features that the caller leaves out come from the item's record."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from redis import Redis

from model_def.rows import rows_from_columns
from service.features.codec import ItemCodec
from service.features.items import ItemCache
from service.features.store import FeatureStore, connect, key
from service.load import load_items
from service.settings import StoreSettings
from tests.service.world import SCHEMA, candidate, opener, request, running, settings

ITEMS = (501, 502, 503)


@pytest.fixture(scope="module")
def client(redis_url: str) -> Iterator[httpx.Client]:
    """A gateway that remembers items for an hour, over records of three."""
    columns = {"item_id": ITEMS, "cuisine": [11, 12, 13], "price": [1.25, 2.5, 3.75]}
    rows = rows_from_columns(SCHEMA.layouts["item"], columns, 3)

    async def load() -> None:
        redis = connect(redis_url, 4)
        store = FeatureStore(redis, SCHEMA, StoreSettings())
        assert await load_items(store, rows, np.array([1.0, 2.0, 3.0])) == 3
        await redis.aclose()

    asyncio.run(load())
    with running(settings(redis_url, item_cache_ttl_s=3600), opener(SCHEMA)) as client:
        yield client


def rank(client: httpx.Client, candidates: Any) -> dict[str, Any]:
    response = client.post("/v1/rank", json=request(1, candidates=candidates, request_id="r"))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def mgets(redis: Redis) -> int:
    """MGETs that the server has answered."""
    return int(redis.info("commandstats")["cmdstat_mget"]["calls"])


def bare(item_id: int, **features: float) -> dict[str, Any]:
    return {"item_id": item_id, "features": {"distance": 1.0} | features}


def full(item_id: int, cuisine: int, price: float) -> dict[str, Any]:
    return bare(item_id, cuisine=cuisine, price=price)


def test_a_record_stands_in_for_absent_features(client: httpx.Client, redis: Redis) -> None:
    """The same answer as with the features sent; what is sent wins; then Redis is not asked, until
    a record changes."""
    sent = rank(client, [full(501, 11, 1.25), full(502, 12, 9.0)])
    assert rank(client, [bare(501), bare(502, price=9.0)]) == sent
    table = {"item_id": [501, 503], "features": {"distance": [1.0, 1.0]}}
    whole = rank(client, [full(501, 11, 1.25), full(503, 13, 3.75)])
    assert rank(client, table) == whole
    before = mgets(redis)
    assert rank(client, table) == whole
    assert mgets(redis) == before + 1  # the user's
    other = rows_from_columns(
        SCHEMA.layouts["item"], {"item_id": [503], "cuisine": [7], "price": [9.5]}, 1
    )
    (value,) = ItemCodec(SCHEMA.layouts["item"], SCHEMA.layout_hash).encode(other, np.ones(1))
    redis.set(key(SCHEMA, "item", 503), value)
    expected = rank(client, [full(501, 11, 1.25), full(503, 7, 9.5)])
    while rank(client, table) != expected:
        pass  # until word of the change has come


def test_an_unknown_item_is_ranked_and_named(client: httpx.Client, redis: Redis) -> None:
    """Absent and damaged records leave zeros, and the answer says so."""
    answer = rank(client, [bare(777), bare(501)])
    assert (answer["missing"]["item"], answer["ranked_by"]) == ("absent", "model")
    assert len(answer["items"]) == 2
    assert rank(client, [full(777, 0, 0.0), full(501, 11, 1.25)])["items"] == answer["items"]
    size = ItemCodec(SCHEMA.layouts["item"], SCHEMA.layout_hash).record_bytes
    redis.set(key(SCHEMA, "item", 778), b"short")
    assert rank(client, [bare(778)])["missing"]["item"] == "truncated"
    redis.set(key(SCHEMA, "item", 779), b"\1" * size)
    damaged = rank(client, [bare(779)])
    assert damaged["missing"]["item"] == "corrupt"
    assert damaged["reason"] == "features_corrupt"


def test_no_item_is_asked_for_when_every_feature_is_sent(
    client: httpx.Client, redis: Redis
) -> None:
    """One MGET of three keys is all that such a request asks of Redis."""
    rank(client, [candidate(1)])
    before = redis.info("commandstats")
    rank(client, [candidate(1)])
    after = redis.info("commandstats")
    calls = {
        name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"]
        for name in after
        if name != "cmdstat_info"
    }
    assert {name: count for name, count in calls.items() if count} == {"cmdstat_mget": 1}


def test_the_cache_is_bounded_in_number_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest leave first, nothing outlives its time, and an absence is remembered too."""
    now = [0.0]
    monkeypatch.setattr("service.features.items.monotonic", lambda: now[0])
    cache = ItemCache(capacity=2, ttl_s=10.0)
    cache.keep({1: b"a", 2: None})
    assert cache.split([1, 2, 3]) == ({1: b"a", 2: None}, [3])
    cache.keep({1: b"b"})
    cache.keep({3: b"c"})
    assert cache.split([1, 2, 3]) == ({1: b"b", 3: b"c"}, [2])
    assert len(cache) == 2
    now[0] = 11.0
    assert cache.split([1, 3]) == ({}, [1, 3])
