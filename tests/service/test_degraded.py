"""When Redis or the engine fails, a valid request is still ranked, by what is left, in time."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from redis import Redis

from engine_build.runtime.engine import Scores
from model_def.batch import PackedBatch
from model_def.rows import rows_from_columns
from service.breaker import TRIP
from service.features.codec import ItemCodec
from service.features.embedded import embedded_server
from service.features.store import key
from service.settings import FreshnessSettings, SceneSettings
from tests.service.world import (
    SCHEMA,
    Arithmetic,
    candidate,
    event,
    opener,
    profile,
    request,
    running,
    settings,
)


class Broken(Arithmetic):
    """An engine that fails as it is told to, once warm."""

    def __init__(self) -> None:
        self.fail: Callable[[PackedBatch], Scores] | None = None

    def run(self, batch: PackedBatch) -> Scores:
        return self.fail(batch) if self.fail else super().run(batch)


def raising(batch: PackedBatch) -> Scores:
    raise RuntimeError("out of memory")


def not_finite(batch: PackedBatch) -> Scores:
    return Scores({"ctr": np.full(batch.candidates, np.nan, np.float32)})


def too_few(batch: PackedBatch) -> Scores:
    return Scores({"ctr": np.ones(batch.candidates - 1, np.float32)})


@pytest.fixture(scope="module")
def engine() -> Broken:
    return Broken()


@pytest.fixture(scope="module")
def broken(redis_url: str, engine: Broken) -> Iterator[httpx.Client]:
    """A gateway whose engine fails on demand."""
    config = settings(redis_url, answer_reserve_ms=150)  # of the 500 ms below: tests share cores
    with running(config, opener(SCHEMA, engine)) as client:
        yield client


def rank(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/rank", json=request(**body))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize(
    ("fail", "reason"),
    [(raising, "error"), (not_finite, "invalid_scores"), (too_few, "invalid_scores")],
)
def test_a_failing_engine_leaves_the_recall_order(
    broken: httpx.Client, engine: Broken, fail: Any, reason: str
) -> None:
    """Recall scores rank, those without one last, and the answer says why."""
    recall = {0: 0.1, 2: 0.7, 3: 0.4}
    rows = [candidate(i) | ({"recall_score": recall[i]} if i in recall else {}) for i in range(4)]
    engine.fail = fail
    try:
        answer = rank(broken, candidates=rows)
    finally:
        engine.fail = None
    assert (answer["degraded"], answer["reason"]) == (True, f"backend_{reason}")
    assert answer["ranked_by"] == "recall_score"
    assert [item["item_id"] for item in answer["items"]] == [2, 3, 0, 1]
    assert [item["score"] for item in answer["items"]] == [0.7, 0.4, 0.1, None]
    assert answer["items"][0]["ctr"] is None


def test_popularity_then_input_order_are_what_is_left(
    broken: httpx.Client, engine: Broken, redis: Redis
) -> None:
    """Without recall scores the item records' popularity ranks; without those, the input."""
    rows = rows_from_columns(
        SCHEMA.layouts["item"], {"item_id": [901, 902], "cuisine": [1, 2], "price": [1, 2]}, 2
    )
    codec = ItemCodec(SCHEMA.layouts["item"], SCHEMA.layout_hash)
    for item_id, value in zip((901, 902), codec.encode(rows, np.array([3.0, 9.0])), strict=True):
        redis.set(key(SCHEMA, "item", item_id), value)
    engine.fail = raising
    try:
        popular = rank(broken, candidates=[candidate(i) for i in (900, 901, 902)])
        unknown = rank(broken, candidates=[candidate(i) for i in (955, 933)])
    finally:
        engine.fail = None
    assert popular["ranked_by"] == "popularity"
    assert [item["item_id"] for item in popular["items"]] == [902, 901, 900]
    assert unknown["ranked_by"] == "input_order"
    assert [item["item_id"] for item in unknown["items"]] == [955, 933]


def test_a_frozen_engine_costs_no_more_than_the_deadline(
    broken: httpx.Client, engine: Broken
) -> None:
    """The answer leaves before the deadline, and the late batch is dropped."""
    release = Event()

    def frozen(batch: PackedBatch) -> Scores:
        release.wait()
        return Arithmetic().run(batch)

    engine.fail = frozen
    try:
        start = monotonic()
        answers = [rank(broken, deadline_ms=500) for _ in range(2)]
        took = monotonic() - start
    finally:
        engine.fail = None
        release.set()
    assert [a["reason"] for a in answers] == ["backend_timeout"] * 2
    assert took < 2 * 0.5
    assert rank(broken)["ranked_by"] == "model"


def test_damaged_values_are_named_and_counted(client: httpx.Client, redis: Redis) -> None:
    """Corrupt, truncated and old-schema values are treated as absent, part by part."""

    def flip(value: bytes) -> bytes:
        return value[:-1] + bytes([value[-1] ^ 1])

    def cut(value: bytes) -> bytes:
        return value[:-1]

    def age(value: bytes) -> bytes:
        start = 8 if value.startswith(b"MTGR") else 0
        return value[:start] + b"\0" * 8 + value[start + 8 :]

    parts = {"profile": "profile", "lifelong": "static", "realtime": "rt"}
    for part, stored in parts.items():
        for damage, reason in ((flip, "corrupt"), (cut, "truncated"), (age, "old_schema")):
            user_id = f"damaged {part} {reason}"
            client.put(f"/v1/users/{quote(user_id)}", json=profile())
            client.post("/v1/events", json={"user_id": user_id, "events": [event("e")]})
            whole = rank(client, user_id=user_id)
            name = key(SCHEMA, stored, user_id)
            value = redis.get(name)
            assert isinstance(value, bytes)
            redis.set(name, damage(value))
            answer = rank(client, user_id=user_id)
            assert (whole["degraded"], whole["missing"]) == (False, {})
            assert answer["missing"] == {part: reason}
            assert (answer["degraded"], answer["reason"]) == (True, f"features_{reason}")
            assert answer["ranked_by"] == "model"
            counted = f'mtgr_features_absent_total{{part="{part}",reason="{reason}",scene="home"}}'
            assert counted in client.get("/metrics").text


@pytest.fixture
def own_redis() -> Iterator[tuple[str, int]]:
    """A server of the test's own, to be stopped: its URL and process id."""
    with (
        tempfile.TemporaryDirectory(prefix="mtgr-") as directory,
        embedded_server(Path(directory)) as url,
        Redis.from_url(url) as client,
    ):
        yield url, client.info("server")["process_id"]


@pytest.mark.parametrize(
    ("how", "reason"), [(signal.SIGSTOP, "timeout"), (signal.SIGKILL, "unavailable")]
)
def test_without_redis_a_user_is_remembered_and_others_are_strangers(
    own_redis: tuple[str, int], how: signal.Signals, reason: str
) -> None:
    """Redis killed or frozen: 200 within the deadline, with the features seen last or none, each
    part named; a write is refused; and once it answers again, so do its features, however few the
    connections."""
    url, process = own_redis
    config = settings(url, redis_connections=2, redis_timeout_ms=50, redis_write_timeout_ms=200)
    with running(config, opener(SCHEMA)) as client:
        client.put("/v1/users/u1", json=profile())
        whole = rank(client)
        assert whole["missing"] == {}
        os.kill(process, how)
        try:
            start = monotonic()
            known = [rank(client, deadline_ms=1000) for _ in range(2)]
            strangers = [rank(client, user_id="u2", deadline_ms=1000) for _ in range(2)]
            took = monotonic() - start
            write = client.post("/v1/events", json={"user_id": "u1", "events": [event("e")]})
        finally:
            os.kill(process, signal.SIGCONT)
        if how is signal.SIGSTOP:
            assert Redis.from_url(url).ping()
            assert rank(client)["missing"] == {}
    parts = ("profile", "lifelong", "realtime")
    for answer in known:
        assert (answer["reason"], answer["ranked_by"]) == ("features_remembered", "model")
        assert answer["missing"] == dict.fromkeys(parts, "remembered")
        assert answer["items"] == whole["items"]
    for answer in strangers:
        assert (answer["reason"], answer["ranked_by"]) == (f"features_{reason}", "model")
        assert answer["missing"] == dict.fromkeys(parts, reason)
        assert len(answer["items"]) == 3
    assert took < 4 * 1.0
    assert write.status_code == 503
    assert write.headers["retry-after"] == "1"
    assert write.json()["error"]["type"] == "dependency_failed"


def test_a_redis_that_keeps_failing_is_left_alone_until_it_answers(
    own_redis: tuple[str, int],
) -> None:
    """After some timeouts nobody waits for a frozen Redis any more, writers included; the state is
    a metric; and the first try after it is back closes the circuit."""
    url, process = own_redis
    with running(settings(url, redis_timeout_ms=50), opener(SCHEMA)) as client:
        os.kill(process, signal.SIGSTOP)
        try:
            reasons = [rank(client)["reason"] for _ in range(TRIP + 1)]
            write = client.post("/v1/events", json={"user_id": "u1", "events": [event("e")]})
            opened = client.get("/metrics").text
        finally:
            os.kill(process, signal.SIGCONT)
        assert reasons == ["features_timeout"] * TRIP + ["features_circuit_open"]
        assert write.json()["error"]["problem"] == "redis: circuit_open"
        state = 'mtgr_breaker_state{dependency="redis",server=""}'
        assert f"{state} 2.0" in opened
        while rank(client)["reason"] is not None:
            pass
        assert f"{state} 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("limit", ["snapshot_s", "event_s"])
def test_features_too_old_for_a_scene_are_marked_or_refused(redis_url: str, limit: str) -> None:
    """Each scene by its own policy; ages are metrics; a user without features has no age."""
    scenes = {
        "any": SceneSettings(model="home"),
        "mark": SceneSettings(model="home", freshness=FreshnessSettings(**{limit: 10})),
        "refuse": SceneSettings(
            model="home", freshness=FreshnessSettings(**{limit: 10}, then="refuse")
        ),
    }
    config = settings(redis_url, scenes=scenes, default_scene="any")
    with running(config, opener(SCHEMA)) as client:
        client.put("/v1/users/aged", json=profile())
        client.post("/v1/events", json={"user_id": "aged", "events": [event("e")]})
        assert rank(client, user_id="aged")["reason"] is None
        marked = rank(client, user_id="aged", scene="mark")
        refused = client.post("/v1/rank", json=request(user_id="aged", scene="refuse"))
        assert rank(client, user_id="nobody", scene="refuse")["reason"] is None
        text = client.get("/metrics").text
    parts = ("profile", "lifelong") if limit == "snapshot_s" else ("realtime",)
    assert (marked["reason"], marked["ranked_by"]) == ("features_stale", "model")
    assert marked["missing"] == dict.fromkeys(parts, "stale")
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "features_stale"
    assert 'mtgr_snapshot_age_seconds_sum{scene="any"} 3600.0' in text
    assert 'mtgr_event_age_seconds_sum{scene="any"} 60.0' in text


def test_a_gateway_starts_without_redis_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ready, ranking everyone as a stranger, with one line that tells why."""
    nowhere = settings(f"unix://{tmp_path / 'nobody.sock'}")
    with running(nowhere, opener(SCHEMA)) as client:
        answer = rank(client)
    assert (answer["ranked_by"], answer["reason"]) == ("model", "features_unavailable")
    assert any("Redis does not answer" in message for message in caplog.messages)
