"""`POST /v1/rank` over real HTTP and a real Redis."""

from urllib.parse import quote

import httpx
import msgspec
import numpy as np

from service.http.replies import RankAnswer
from tests.service.world import NOW_MS, as_columns, event, profile, request


def rank(client: httpx.Client, body: dict[str, object]) -> dict[str, object]:
    response = client.post("/v1/rank", json=body)
    assert response.status_code == 200, response.text
    RankAnswer.model_validate_json(response.content)
    answer: dict[str, object] = response.json()
    return answer


def test_a_known_user_is_ranked_by_the_model(client: httpx.Client, user_id: str) -> None:
    """Profile, lifelong and real-time features reach the engine, and the best item comes first."""
    unknown = rank(client, request(20, user_id=user_id))
    assert unknown["missing"] == {"profile": "absent", "lifelong": "absent"}
    stored = client.put(f"/v1/users/{quote(user_id, safe='')}", json=profile())
    assert stored.json() == {"user_id": user_id, "lifelong": 4}
    known = rank(client, request(20, user_id=user_id))
    assert client.post(
        "/v1/events", json={"user_id": user_id, "events": [event("a"), event("b")]}
    ).json() == {"appended": 2, "repeated": 0, "labels": 0}
    active = rank(client, request(20, user_id=user_id))

    answers = [unknown, known, active]
    assert [a["ranked_by"] for a in answers] == ["model"] * 3
    assert [a["degraded"] for a in answers] == [False] * 3
    assert len({a["items"][0]["score"] for a in answers}) == 3
    scores = [item["score"] for item in active["items"]]
    assert scores == sorted(scores, reverse=True)
    assert scores == [item["ctcvr"] for item in active["items"]]


def test_server_timing_names_every_stage_and_they_add_up(client: httpx.Client) -> None:
    """No time of a request is unaccounted for."""
    header = client.post("/v1/rank", json=request()).headers["server-timing"]
    stages = dict(part.split(";dur=") for part in header.split(", "))
    total = float(stages.pop("total"))
    assert list(stages) == [
        "read", "queue", "decode", "validate", "features", "pack", "backend", "order", "encode",
    ]  # fmt: skip
    assert abs(sum(map(float, stages.values())) - total) < 0.01


def test_every_encoding_of_a_request_gets_the_same_answer(client: httpx.Client) -> None:
    """Rows, columns, MessagePack and binary columns mean the same."""
    rows = request(30, request_id="r", top_k=7)
    columns = rows | {"candidates": as_columns(rows["candidates"])}
    packed = dict(columns["candidates"])
    dtypes = {"item_id": "<i8", "cuisine": "<i4", "price": "<f8", "distance": "<f8"}

    def binary(name: str, values: list[float]) -> dict[str, object]:
        return {"dtype": dtypes[name], "data": np.array(values, dtypes[name]).tobytes()}

    packed["item_id"] = binary("item_id", packed["item_id"])
    packed["features"] = {n: binary(n, v) for n, v in packed["features"].items()}
    headers = {"content-type": "application/msgpack", "accept": "application/json"}
    pack = msgspec.msgpack.encode
    answers = [
        client.post("/v1/rank", json=rows).json(),
        client.post("/v1/rank", json=columns).json(),
        *(
            client.post("/v1/rank", content=pack(body), headers=headers).json()
            for body in (rows, columns, columns | {"candidates": packed})
        ),
    ]
    assert len(answers[0]["items"]) == 7
    assert all(answer == answers[0] for answer in answers)
    headers = {"content-type": "application/msgpack"}
    response = client.post("/v1/rank", content=msgspec.msgpack.encode(rows), headers=headers)
    assert msgspec.msgpack.decode(response.content) == answers[0]


def test_a_later_event_changes_nothing(client: httpx.Client, user_id: str) -> None:
    """Events at or after the request's time never reach the engine."""
    client.put(f"/v1/users/{quote(user_id, safe='')}", json=profile())
    body = request(5, user_id=user_id, request_id="r")
    before = rank(client, body)
    late = [event("x", NOW_MS), event("y", NOW_MS + 1000)]
    client.post("/v1/events", json={"user_id": user_id, "events": late})
    assert rank(client, body) == before
