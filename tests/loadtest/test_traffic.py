"""Laws of what is asked."""

import json
from collections import Counter
from pathlib import Path
from time import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.material import BadMaterial, Material, read_material
from loadtest.mistakes import KINDS, bad_request
from loadtest.request import JSON, Candidates, Request, rank_body
from loadtest.traffic import Mix, Traffic
from model_def.data.bodies import write_traffic
from model_def.data.simulate import simulate
from model_def.data.simulator import SCHEMA, Marketplace
from service.errors import InvalidRequest
from service.http.validate import Limits, behaviour, rank_request
from service.http.wire import Wire

LIMITS = Limits(
    max_candidates=2000,
    max_events=1000,
    clock_skew_ms=300_000,
    default_deadline_ms=200,
    max_deadline_ms=60_000,
)
WIRE = Wire(SCHEMA)


def requests(traffic: Traffic, sessions: int) -> list[Request]:
    return [
        traffic.request(session, turn)
        for session in range(sessions)
        for turn in range(traffic.turns(session))
    ]


def gateway_reads(request: Request) -> Any:
    """The request as the gateway's own decoder and checks see it; raises InvalidRequest."""
    decoder = WIRE.events if request.path == "/v1/events" else WIRE.rank
    body = decoder.decode(request.body, "json" if request.content_type == JSON else "msgpack")
    now_ms = int(time() * 1000)
    if request.path == "/v1/events":
        return behaviour(body, SCHEMA, LIMITS, now_ms)
    return rank_request(body, SCHEMA, LIMITS, now_ms, "", 50)


def test_the_description_names_the_demos_features(material: Material) -> None:
    """marketplace.json has the features of the simulator's schema, no more and no less."""
    candidate = {feature.name for feature in SCHEMA.candidate} - {"item_id"}
    assert material.candidates.features.keys() == candidate
    assert material.heads[0]["context"].keys() == {feature.name for feature in SCHEMA.context}
    assert material.events[0].keys() == {feature.name for feature in SCHEMA.behaviour}


def test_the_gateway_accepts_what_is_valid_and_refuses_what_is_bad(material: Material) -> None:
    """Every drawn request meets the gateway's own checks as its expected status says."""
    drawn = requests(Traffic(material, Mix(bad=0.3, events=0.2), sessions=80), 80)
    assert {request.status for request in drawn} == {200, 415, 422}
    for request in drawn:
        if request.status == 200:
            gateway_reads(request)
        elif request.status == 422:
            with pytest.raises(InvalidRequest):
                gateway_reads(request)


columns = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(-(2**62), 2**62), min_size=count, max_size=count, unique=True),
        st.lists(st.integers(0, 2**40), min_size=count, max_size=count),
        st.lists(st.integers(-8000, 8000), min_size=count, max_size=count),
    )
)


@settings(deadline=None)
@given(columns)
def test_three_formats_say_the_same(given_columns: tuple[list[int], list[int], list[int]]) -> None:
    """Rows, columns and binary columns decode to equal candidates."""
    ids, categories, quarters = (np.array(column, np.int64) for column in given_columns)
    numbers = (quarters / 4).astype(np.float32)
    candidates = Candidates(ids, numbers, {"category": categories, "price": numbers})
    rows, lists, binary = (
        rank_body({}, candidates, f)[1] for f in ("json-rows", "json-columns", "msgpack")
    )
    by_column = json.loads(lists)["candidates"]
    assert by_column == {
        "item_id": ids.tolist(),
        "recall_score": numbers.tolist(),
        "features": {"category": categories.tolist(), "price": numbers.tolist()},
    }
    assert json.loads(rows)["candidates"] == [
        {"item_id": i, "recall_score": r, "features": {"category": c, "price": r}}
        for i, r, c in zip(ids.tolist(), numbers.tolist(), categories.tolist(), strict=True)
    ]
    packed = msgspec.msgpack.decode(binary)["candidates"]
    for unpacked, column in [
        (packed["item_id"], ids),
        (packed["recall_score"], numbers),
        (packed["features"]["category"], categories),
        (packed["features"]["price"], numbers),
    ]:
        assert np.array_equal(np.frombuffer(unpacked["data"], unpacked["dtype"]), column)


def test_same_seed_same_bytes(material: Material) -> None:
    """A seed decides every byte, so that two runs differ by the server alone."""
    mix = Mix(events=0)
    first, again = (requests(Traffic(material, mix, seed=7, sessions=20), 20) for _ in range(2))
    other = requests(Traffic(material, mix, seed=8, sessions=20), 20)
    assert first == again
    assert first != other


def test_traffic_is_uneven(material: Material) -> None:
    """A few users ask most, counts of candidates have a long tail, and shares are as mixed."""
    mix = Mix(bad=0.05, events=0, cold_users=0.1, json_rows=0.2, json_columns=0.3)
    drawn = requests(Traffic(material, mix, sessions=600), 600)
    asked = [r for r in drawn if r.status == 200]
    bodies = [
        (json.loads if r.content_type == JSON else msgspec.msgpack.decode)(r.body) for r in asked
    ]
    users = Counter(body["user_id"] for body in bodies)
    cold = sum(count for user, count in users.items() if user.startswith("cold-"))
    assert sum(count for _, count in users.most_common(20)) > 0.3 * len(bodies)
    assert cold == pytest.approx(0.1 * len(bodies), rel=0.5)
    sizes = [
        len(body["candidates"])
        for body, r in zip(bodies, asked, strict=True)
        if r.kind == "rank json-rows"
    ]
    assert max(sizes) > 3 * np.median(sizes)
    assert max(sizes) <= mix.candidates_max
    kinds = Counter(r.kind for r in asked)
    assert kinds["rank json-rows"] == pytest.approx(0.2 * len(asked), rel=0.25)
    assert kinds["rank msgpack"] == pytest.approx(0.5 * len(asked), rel=0.25)
    assert len(drawn) - len(asked) == pytest.approx(0.05 * len(drawn), rel=0.4)


def test_mistakes_are_distinct() -> None:
    """Each kind of mistake is another request, and is named."""
    candidates = Candidates(np.array([1, 2]), np.zeros(2, np.float32), {})
    head = {"user_id": "u", "top_k": 1}
    good = rank_body(head, candidates, "json-rows")[1]
    made = [bad_request(good, number) for number in range(KINDS)]
    assert len({request.kind for request in made}) == KINDS
    assert len({(request.content_type, request.headers, request.body) for request in made}) == KINDS


def test_events_never_repeat(material: Material) -> None:
    """An event has an id of its own each time, or the gateway would leave it out."""
    traffic = Traffic(material, Mix(bad=0, events=1.0), sessions=4)
    ids = [json.loads(traffic.request(0, 0).body)["events"][0]["event_id"] for _ in range(50)]
    assert len(set(ids)) == 50


@pytest.mark.parametrize("wrong", [{"bad": 1.5}, {"json_rows": 0.8}, {"zipf": 0}, {"top_k": 0}])
def test_an_impossible_mix_is_refused(wrong: dict[str, float]) -> None:
    """A share beyond 1, or a count below 1, is named."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Mix(**wrong)  # type: ignore[arg-type]


def test_traffic_file(tmp_path: Path) -> None:
    """Lines of a traffic file become users, contexts, distinct items and events."""
    body = {
        "user_id": "a",
        "scene": "home",
        "request_id": "r",
        "timestamp": 5,
        "context": {"hour": 3},
        "candidates": {"item_id": [7, 8], "features": {"price": [1.5, 2.0], "category": [1, 2]}},
    }
    other = {**body, "user_id": "b", "candidates": {**body["candidates"], "item_id": [8, 9]}}  # type: ignore[dict-item]
    lines = [{"user_id": "busy"}, {"rank": body}, {"rank": other}, {"event": {"item_id": 7}}]
    path = tmp_path / "traffic.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    read = read_material(path)
    assert read.users == ("busy", "a", "b")
    assert read.heads[0] == {"scene": "home", "context": {"hour": 3}}
    assert read.candidates.item_id.tolist() == [7, 8, 9]
    assert read.candidates.features["category"].tolist() == [1, 2, 2]
    assert read.events == ({"item_id": 7},)


def test_the_simulators_traffic_file_is_served(tmp_path: Path) -> None:
    """What the simulator writes beside its logs makes requests that the gateway accepts."""
    market = Marketplace(users=40, items=60)
    write_traffic(tmp_path / "traffic.jsonl", simulate(market, 1_767_571_200_000, 1).logs, 20)
    read = read_material(tmp_path / "traffic.jsonl")
    assert set(read.users) <= set(market.user_id)
    drawn = requests(Traffic(read, Mix(bad=0, events=0.3), sessions=40), 40)
    assert {request.path for request in drawn} == {"/v1/rank", "/v1/events"}
    for request in drawn:
        gateway_reads(request)


@pytest.mark.parametrize(
    "line", ['{"rank": {}}', "[]", "{", '{"rank": {"candidates": {}, "context": {}}}', ""]
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    """A traffic file that cannot be read says in which line."""
    path = tmp_path / "traffic.jsonl"
    path.write_text(f'{{"user_id": "u"}}\n{line}\n')
    with pytest.raises(BadMaterial, match=r"traffic.jsonl:2"):
        read_material(path)
