"""`?explain=true`: what the model saw, and what each cross feature was worth."""

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from redis import Redis

from loadtest.material import MARKETPLACE, read_material
from loadtest.request import rank_body
from model_def.rows import rows_from_columns
from service.backends.inprocess import open_model
from service.demo import PACKAGE
from service.features.codec import ItemCodec
from service.features.store import key
from service.http.replies import RankAnswer
from service.settings import ModelSettings
from tests.service.test_degraded import Broken, raising
from tests.service.world import SCHEMA, opener, profile, request, running, settings

MATERIAL = read_material(MARKETPLACE)


@pytest.fixture(scope="module")
def demo(redis_url: str) -> Iterator[httpx.Client]:
    """The demo package, served."""
    config = settings(redis_url, models={"home": ModelSettings(package=PACKAGE)})
    with running(config, open_model) as client:
        yield client


def body(count: int, **features: float) -> dict[str, Any]:
    """A request of the demo's features, some of them set for all candidates."""
    head = {"user_id": "u", "timestamp": 1_760_000_000_000, "top_k": 5, **MATERIAL.heads[0]}
    _, content = rank_body(head, MATERIAL.candidates.take(np.arange(count)), "json-columns")
    made: dict[str, Any] = msgspec.json.decode(content)
    for name, value in features.items():
        made["candidates"]["features"][name] = [value] * count
    return made


def rank(client: httpx.Client, body: Any, query: str = "?explain=true") -> dict[str, Any]:
    response = client.post(f"/v1/rank{query}", json=body)
    assert response.status_code == 200, response.text
    RankAnswer.model_validate_json(response.content)
    answer: dict[str, Any] = response.json()
    return answer


def test_a_feature_taken_out_changes_the_score_as_asking_without_it_would(
    demo: httpx.Client,
) -> None:
    """Each change equals the difference to a request whose candidates all have the neutral value
    of that feature; and features do change scores."""
    answer = rank(demo, body(9))
    explanation = answer["explanation"]
    largest = 0.0
    for name, neutral in explanation["neutral"].items():
        asked = rank(demo, body(9, **{name: neutral}) | {"top_k": 9}, "")
        scores = {item["item_id"]: item["score"] for item in asked["items"]}
        for item, told in zip(answer["items"], explanation["items"], strict=True):
            change = scores[item["item_id"]] - item["score"]
            assert told["without"][name] == pytest.approx(change, abs=1e-5)
            largest = max(largest, abs(change))
    assert largest > 1e-3


def test_the_median_of_the_largest_numbers_is_one_of_them(client: httpx.Client) -> None:
    """The two in the middle may be the largest of their type: their sum is none of it."""
    largest = float(np.finfo(np.float32).max)
    for many in (2, 4):
        asked = request(many)
        for candidate in asked["candidates"]:
            candidate["features"]["distance"] = -largest
        assert rank(client, asked)["explanation"]["neutral"]["distance"] == -largest


def test_features_are_told_as_the_model_saw_them(client: httpx.Client, redis: Redis) -> None:
    """Joined from the item's record, with defaults; tokens are those of the request."""
    rows = rows_from_columns(
        SCHEMA.layouts["item"], {"item_id": [4321], "cuisine": [7], "price": [2.5]}, 1
    )
    value = ItemCodec(SCHEMA.layouts["item"], SCHEMA.layout_hash).encode(rows, np.array([1.0]))
    redis.set(key(SCHEMA, "item", 4321), value[0])
    client.put("/v1/users/explained", json=profile(4))
    candidates = [{"item_id": 4321, "features": {"distance": 0.5}}]
    asked = request(1, user_id="explained", candidates=candidates)
    explanation = rank(client, asked)["explanation"]
    seen = {"item_id": 4321, "cuisine": 7, "price": 2.5, "distance": 0.5, "past_orders": 0.0}
    assert explanation["items"][0]["features"] == seen
    assert explanation["profile"] == {"age": 3, "city": 77, "orders": 12.5}
    assert explanation["context"] == {"hour": 12}
    assert explanation["tokens"] == {"profile": 3, "lifelong": 4, "realtime": 0, "candidate": 1}
    assert explanation["neutral"] == {"distance": 0.5, "past_orders": 0.0}
    assert {"queue", "features", "backend", "order"} <= set(explanation["stages_ms"])


def test_what_no_model_ranked_cannot_be_taken_apart(redis_url: str) -> None:
    """A degraded answer says why there are no changes of scores, and still tells the features."""
    engine = Broken()
    with running(settings(redis_url), opener(SCHEMA, engine)) as client:
        engine.fail = raising
        answer = rank(client, request(2))
    assert answer["explanation"]["why_not"] == "ranked by input_order"
    assert [item["without"] for item in answer["explanation"]["items"]] == [None, None]
    assert answer["explanation"]["items"][0]["features"]["distance"] == 0.25


def test_nothing_is_explained_unasked(client: httpx.Client) -> None:
    """Without the query the answer is as before; another value is refused with its place."""
    assert "explanation" not in client.post("/v1/rank", json=request(2)).json()
    assert "explanation" not in client.post("/v1/rank?explain=false", json=request(2)).json()
    refused = client.post("/v1/rank?explain=perhaps", json=request(2))
    assert (refused.status_code, refused.json()["error"]["path"]) == (422, "query.explain")
