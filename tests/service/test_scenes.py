"""Several scenes and schemas in one service, and what each request is ranked with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_def.config import PackageConfig, ScoreFormula
from service.backends.inprocess import InProcessBackend
from service.settings import ModelSettings, SceneSettings
from tests.service.world import (
    OTHER_SCHEMA,
    SCHEMA,
    event,
    opener,
    profile,
    request,
    running,
    settings,
)

ADVERT = {"item_id": 1, "features": {"campaign": 5, "bid": 0.5}}


def open_either(model: ModelSettings) -> tuple[PackageConfig, InProcessBackend]:
    schema = {"market": SCHEMA, "adverts": OTHER_SCHEMA}[model.package.name]
    return opener(schema, version=f"{schema.name}-1")(model)


@pytest.fixture(scope="module")
def both(redis_url: str) -> Iterator[httpx.Client]:
    """Three scenes on two models of different schemas."""
    config = settings(
        redis_url,
        models={
            "market": ModelSettings(package=Path("market")),
            "adverts": ModelSettings(package=Path("adverts")),
        },
        scenes={
            "feed": SceneSettings(model="market", top_k=2),
            "clicks": SceneSettings(
                model="market", score=ScoreFormula(ctr_power=1.0, ctcvr_power=0.0)
            ),
            "banner": SceneSettings(model="adverts"),
        },
        default_scene="feed",
    )
    with running(config, open_either) as client:
        yield client


def rank(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/rank", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_scene_picks_model_formula_and_length(both: httpx.Client) -> None:
    """The default scene serves a request that names none; each has its own top_k and score."""
    feed, clicks = rank(both, request(9)), rank(both, request(9, scene="clicks"))
    banner = rank(both, {"user_id": "u", "scene": "banner", "candidates": [ADVERT]})
    assert [a["model_version"] for a in (feed, clicks, banner)] == [
        "market-1", "market-1", "adverts-1",
    ]  # fmt: skip
    assert len(feed["items"]) == 2
    assert len(clicks["items"]) == 9
    assert all(item["score"] == item["ctcvr"] for item in feed["items"])
    assert all(item["score"] == item["ctr"] for item in clicks["items"])


def test_each_scene_is_validated_by_its_own_schema(both: httpx.Client) -> None:
    """A market's candidate is no advert, and the path says where they differ."""
    response = both.post("/v1/rank", json=request(1, scene="banner"))
    assert response.status_code == 422
    assert response.json()["error"]["path"] == "$.context.hour"
    unknown = both.post("/v1/rank", json={"scene": "mars"}).json()["error"]
    assert unknown["expected"] == "one of ['banner', 'clicks', 'feed']"


def test_schemas_do_not_see_each_others_users(both: httpx.Client, user_id: str) -> None:
    """The same user id has features of its own under each schema."""
    both.post("/v1/events", json={"user_id": user_id, "scene": "feed", "events": [event("a")]})
    both.put("/v1/users/same", json=profile())
    assert rank(both, request(1, user_id="same"))["missing"] == {}
    advert = rank(both, {"user_id": "same", "scene": "banner", "candidates": [ADVERT]})
    assert advert["missing"] == {"profile": "absent", "lifelong": "absent"}


def test_models_are_shown_and_documented(both: httpx.Client) -> None:
    """/v1/models tells what ranks each scene; OpenAPI has the bodies of both schemas."""
    shown = both.get("/v1/models").json()
    assert shown["default_scene"] == "feed"
    assert {n: (s["model"], s["ready"], s["top_k"]) for n, s in shown["scenes"].items()} == {
        "feed": ("market", True, 2),
        "clicks": ("market", True, 50),
        "banner": ("adverts", True, 50),
    }
    document = both.get("/openapi.json").json()
    body = document["paths"]["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]
    assert len(body["schema"]["anyOf"]) == 2
    names = {ref["$ref"].rsplit("/", 1)[1] for ref in body["schema"]["anyOf"]}
    assert names <= set(document["components"]["schemas"])
    assert "bid" in both.get("/openapi.json").text
    assert "swagger" in both.get("/docs").text.lower()


def test_metrics_are_labelled_by_scene_and_never_by_id(both: httpx.Client) -> None:
    """Every stage of every scene is seen; ids of users, items and requests are not."""
    secret = "user-that-must-not-be-a-label"
    rank(both, request(3, user_id=secret, request_id=secret, scene="clicks"))
    text = both.get("/metrics").text
    assert 'mtgr_stage_seconds_count{scene="clicks",stage="backend"}' in text
    assert 'mtgr_payload_bytes_count{scene="clicks"}' in text
    assert "mtgr_ready 1.0" in text
    assert secret not in text
