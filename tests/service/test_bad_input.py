"""Each bad input over real HTTP: the request and its answer, side by side.

Run with `-s` to print the table.
"""
# ruff: noqa: E501 - a table reads by the line

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import numpy as np
import pytest

from service.http.replies import ErrorAnswer
from tests.service.world import NOW_MS, SNAPSHOT_MS, as_columns, candidate, event, profile, request

JSON = {"content-type": "application/json"}
MSGPACK = {"content-type": "application/msgpack"}


@dataclass(frozen=True)
class Case:
    """A bad request and the parts of its answer."""

    name: str
    body: Any
    status: int
    type: str
    path: str
    problem: str
    expected: str
    headers: Any = None
    target: str = "POST /v1/rank"


def columns(**changes: Any) -> dict[str, Any]:
    """A request in columns, some of them changed."""
    table = as_columns(request(3)["candidates"])
    features = table["features"] | {n: v for n, v in changes.items() if n in table["features"]}
    stamps = {n: v for n, v in changes.items() if n not in table["features"]}
    return request(1, candidates=table | {"features": features} | stamps)


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def binary(dtype: str, data: bytes) -> bytes:
    """A MessagePack request whose price column is binary."""
    return msgspec.msgpack.encode(columns(price={"dtype": dtype, "data": data}))


def lifelong(**row: Any) -> dict[str, Any]:
    body = profile(2)
    body["lifelong"][1] |= row
    return body


def row(**changes: Any) -> dict[str, Any]:
    """A request whose second candidate is changed."""
    rows = request(2)["candidates"]
    return request(1, candidates=[rows[0], rows[1] | changes])


NAN32 = np.array([1.0, np.nan, 2.0], "<f4").tobytes()
PRICE = {"cuisine": 1, "distance": 1.0}
USER = "PUT /v1/users/someone"
SWITCH = "POST /v1/models/home/switch"
EVENTS = "POST /v1/events"

# fmt: off
CASES = [
    Case("malformed JSON", b'{"user_id": "u",', 422, "malformed", "$", "truncated", "JSON", JSON),
    Case("not UTF-8", b'{"user_id": "\xff"}', 422, "malformed", "$", "not UTF-8", "JSON", JSON),
    Case("NaN in JSON", b'{"user_id": NaN}', 422, "malformed", "$", "invalid char", "JSON", JSON),
    Case("malformed MessagePack", b"\x82\xa1", 422, "malformed", "$", "truncated", "MessagePack", MSGPACK),
    Case("deep nesting", b"[" * 100_000, 422, "wrong_type", "$", "got array", "object", JSON),
    Case("a list", b"[]", 422, "wrong_type", "$", "got array", "object", JSON),
    Case("empty body", b"", 422, "malformed", "$", "truncated", "JSON", JSON),
    Case("another media type", b"a=1", 415, "unsupported_media", "$", "media type", "msgpack", {"content-type": "text/plain"}),
    Case("compressed", b"x", 415, "unsupported_media", "$", "compressed", "identity", JSON | {"content-encoding": "gzip"}),
    Case("wrong type", request(user_id=5), 422, "wrong_type", "$.user_id", "got int", "str"),
    Case("empty user id", request(user_id=""), 422, "invalid_value", "$.user_id", "", "length >= 1"),
    Case("long user id", request(user_id="u" * 257), 422, "invalid_value", "$.user_id", "", "length <= 256"),
    Case("text for a number", row(features=PRICE | {"price": "9"}), 422, "wrong_type", "$.candidates[1].features.price", "got str", "float"),
    Case("truth for a number", row(features=PRICE | {"price": True}), 422, "wrong_type", "$.candidates[1].features.price", "got bool", "float"),
    Case("null for a number", row(features=PRICE | {"price": None}), 422, "wrong_type", "$.candidates[1].features.price", "got null", "float"),
    Case("fraction for an id", row(item_id=1.5), 422, "wrong_type", "$.candidates[1].item_id", "got float", "int"),
    Case("id beyond 64 bits", row(item_id=1 << 63), 422, "invalid_value", "$.candidates[1].item_id", "beyond 64 bits", "integers"),
    Case("unknown field", request(model="x"), 422, "unknown_field", "$.model", "unknown", "schema"),
    Case("unknown feature, row", request(candidates=[candidate(1, colour=3)]), 422, "unknown_field", "$.candidates[0].features.colour", "unknown", "schema"),
    Case("unknown feature, column", columns(features={"colour": [1, 2, 3]}), 422, "unknown_field", "$.candidates.features.colour", "unknown", "schema"),
    Case("unknown context", request(context={"hour": 1, "day": 2}), 422, "unknown_field", "$.context.day", "unknown", "schema"),
    Case("missing user", without(request(), "user_id"), 422, "missing", "$.user_id", "missing", "required"),
    Case("missing cross feature, row", row(features={"cuisine": 1, "price": 1.0}), 422, "missing", "$.candidates[1].features.distance", "missing", "required"),
    Case("missing cross feature, column", columns(features={"price": [1, 2, 3]}), 422, "missing", "$.candidates.features.distance", "missing", "required"),
    Case("missing context", without(request(), "context"), 422, "missing", "$.context", "missing", "required"),
    Case("category out of range", row(features=PRICE | {"cuisine": 300}), 422, "invalid_value", "$.candidates[1].features.cuisine", "got 300", "0 <= value < 300"),
    Case("category out of range, column", columns(cuisine=[1, -1, 2]), 422, "invalid_value", "$.candidates.features.cuisine[1]", "got -1", "0 <= value < 300"),
    Case("NaN, binary column", binary("<f4", NAN32), 422, "invalid_value", "$.candidates.features.price[1]", "got nan", "finite", MSGPACK),
    Case("infinity, MessagePack", msgspec.msgpack.encode(row(features=PRICE | {"price": np.inf})), 422, "invalid_value", "$.candidates[1].features.price", "got inf", "finite", MSGPACK),
    Case("beyond float64", b'{"user_id": "u", "candidates": [{"item_id": 1, "features": {"price": 1e999}}]}', 422, "invalid_value", "$.candidates[0].features.price", "out of range", "", JSON),
    Case("beyond float32", row(features=PRICE | {"price": 1e39}), 422, "invalid_value", "$.candidates[1].features.price", "got 1e+39", "finite float32"),
    Case("infinite recall score", msgspec.msgpack.encode(row(recall_score=np.inf)), 422, "invalid_value", "$.candidates[1].recall_score", "got inf", "finite", MSGPACK),
    Case("columns of different lengths", columns(price=[1.0, 2.0]), 422, "invalid_value", "$.candidates.features.price", "got 2", "3 values"),
    Case("too few recall scores", columns(recall_score=[1.0]), 422, "invalid_value", "$.candidates.recall_score", "got 1", "3 values"),
    Case("torn binary column", binary("<f4", b"12345"), 422, "invalid_value", "$.candidates.features.price.data", "5 bytes", "multiple of 4", MSGPACK),
    Case("unknown dtype", binary(">f4", b""), 422, "invalid_value", "$.candidates.features.price.dtype", "", "", MSGPACK),
    Case("no candidates", request(candidates=[]), 422, "invalid_value", "$.candidates", "got 0", "1 to 2000"),
    Case("no candidates, columns", request(candidates={"item_id": [], "features": {"distance": []}}), 422, "invalid_value", "$.candidates.item_id", "got 0", "1 to 2000"),
    Case("too many candidates", request(2001), 422, "invalid_value", "$.candidates", "got 2001", "1 to 2000"),
    Case("duplicate item ids", request(candidates=[candidate(i) for i in (4, 9, 4)]), 422, "invalid_value", "$.candidates[2].item_id", "4 again, first at $.candidates[0]", "differ"),
    Case("duplicate item ids, columns", columns(item_id=[7, 8, 8]), 422, "invalid_value", "$.candidates.item_id[2]", "8 again", "differ"),
    Case("negative timestamp", request(timestamp=-1), 422, "invalid_value", "$.timestamp", "got -1", "milliseconds since 1970"),
    Case("far-future timestamp", request(timestamp=1 << 60), 422, "invalid_value", "$.timestamp", "got 1152921504606846976", "at most"),
    Case("no patience", request(deadline_ms=0), 422, "invalid_value", "$.deadline_ms", "got 0", "1 to 60000"),
    Case("nothing wanted", request(top_k=0), 422, "invalid_value", "$.top_k", "got 0", "1 to 2000"),
    Case("unknown scene", request(scene="mars"), 422, "invalid_value", "$.scene", "no such scene", "['home']"),
    Case("oversize body", b" " * (9 << 20), 413, "too_large", "$", "9437184 bytes", "8388608", JSON),
    Case("oversize body, chunked", lambda: (b" " * (1 << 20) for _ in range(9)), 413, "too_large", "$", "more than", "8388608", JSON),
    Case("no events", {"user_id": "u", "events": []}, 422, "invalid_value", "$.events", "got 0", "1 to 1000", target=EVENTS),
    Case("far-future event", {"user_id": "u", "events": [event("a", 1 << 60)]}, 422, "invalid_value", "$.events[0].timestamp", "got", "at most", target=EVENTS),
    Case("event that says nothing", {"user_id": "u", "events": [{"event_id": "a", "timestamp": NOW_MS}]}, 422, "invalid_value", "$.events[0]", "says nothing", "a label", target=EVENTS),
    Case("event out of range", {"user_id": "u", "events": [event("a"), event("b") | {"features": {"item_id": 1, "action": 4, "price": 1}}]}, 422, "invalid_value", "$.events[1].features.action", "got 4", "0 <= value < 4", target=EVENTS),
    Case("unknown action of a label", {"user_id": "u", "events": [{"event_id": "a", "timestamp": 1, "label": {"request_id": "r", "item_id": 1, "action": "wave"}}]}, 422, "invalid_value", "$.events[0].label.action", "wave", "", target=EVENTS),
    Case("lifelong after the snapshot", lifelong(timestamp=SNAPSHOT_MS + 1), 422, "invalid_value", "$.lifelong[1].timestamp", "got", "never decrease", target=USER),
    Case("lifelong out of order", lifelong(timestamp=1), 422, "invalid_value", "$.lifelong[1].timestamp", "got 1", "never decrease", target=USER),
    Case("profile out of range", profile() | {"profile": {"age": 8}}, 422, "invalid_value", "$.profile.age", "got 8", "0 <= value < 8", target=USER),
    Case("switch to a number", {"package": 7}, 422, "invalid_value", "$.package", "not valid", "valid string", target=SWITCH),
    Case("switch to half a character", b'{"package": ["\\ud9a0"]}', 422, "invalid_value", "$.package", "not valid", "valid string", target=SWITCH),
    Case("switch to nothing", {}, 422, "missing", "$.package", "not valid", "required", target=SWITCH),
    Case("switch, field of half a character", b'{"package": "p", "\\ud9a0": 1}', 422, "invalid_value", "$", "not valid", "unicode", target=SWITCH),
    Case("user id too long", profile(), 422, "invalid_value", "path.id", "not an id", "1 to 256", target=f"PUT /v1/users/{'u' * 257}"),
    Case("user id not UTF-8", profile(), 422, "invalid_value", "path.id", "not an id", "UTF-8", target="PUT /v1/users/%ff"),
]
# fmt: on


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_named(client: httpx.Client, case: Case) -> None:
    """The answer says where the fault is, what it is, and what was expected."""
    method, target = case.target.split(" ", 1)
    headers = case.headers or JSON
    content = case.body() if callable(case.body) else case.body
    if isinstance(content, dict):
        content = msgspec.json.encode(content)
    response = client.request(method, target, content=content, headers=headers)
    assert response.status_code == case.status, response.text
    error = ErrorAnswer.model_validate_json(response.content).error
    sent = "chunks" if callable(case.body) else content[:100]
    row = f"\n{case.name}\n  {method} {target[:60]} {sent!r}\n  {response.status_code} {response.text}"
    print(row)  # noqa: T201 - the table
    assert (error.type, error.path) == (case.type, case.path)
    assert case.problem in error.problem
    assert case.expected in (error.expected or "")


def test_every_refusal_is_counted_by_reason(client: httpx.Client) -> None:
    """Nothing is dropped silently: the counter of a reason rises with each refusal."""

    def count() -> float:
        text = client.get("/metrics").text
        lines = [
            line
            for line in text.splitlines()
            if line.startswith("mtgr_invalid_total") and 'reason="unknown_field"' in line
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    before = count()
    client.post("/v1/rank", json=request(model="x"))
    assert count() == before + 1


def test_an_unknown_user_is_ranked_with_empty_sequences(client: httpx.Client) -> None:
    """Nobody is refused for being new."""
    answer = client.post("/v1/rank", json=request(user_id="never seen")).json()
    assert (answer["ranked_by"], answer["degraded"]) == ("model", False)
    assert answer["missing"] == {"profile": "absent", "lifelong": "absent"}
    assert len(answer["items"]) == 3


def test_a_path_that_is_not_served_answers_in_the_same_shape(client: httpx.Client) -> None:
    """404 and 405 have the one error body too."""
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/rank", 405)):
        response = client.request(method, path)
        assert response.status_code == status
        assert ErrorAnswer.model_validate_json(response.content).error.type == "http"
        assert quote(path) not in response.text
