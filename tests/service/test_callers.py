"""Whose request it is: keys, their rates, and names for those who need none."""

import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from service import callers
from service.callers import ApiKey, Bucket, Callers, read_keys
from service.cli import key as key_command
from service.errors import BadSetting, RateLimited, Unauthorized
from tests.service.world import SCHEMA, event, opener, profile, request, running, settings


def make_key(name: str) -> tuple[str, str]:
    """(the key, the SHA-256 of its secret) as `mtgr key` prints them."""
    output = CliRunner().invoke(key_command, [name]).output.splitlines()
    return output[0], json.loads(output[1])[name]["sha256"]


def test_only_the_whole_key_opens() -> None:
    """Another's name, another's secret, a part of it and no key at all are refused alike."""
    (feed, feed_hash), (search, search_hash) = make_key("feed"), make_key("search")
    gate = Callers({"feed": ApiKey(sha256=feed_hash), "search": ApiKey(sha256=search_hash)})
    assert gate.identify({b"x-api-key": feed.encode()}, "") == "feed"
    assert gate.identify({b"x-api-key": search.encode()}, "") == "search"
    crossed = "feed." + search.partition(".")[2]
    for wrong in (crossed, feed[:-1], feed + "x", "feed.", "feed", ".", "", "nobody.x", "é.x"):
        with pytest.raises(Unauthorized):
            gate.identify({b"x-api-key": wrong.encode()}, "")
    with pytest.raises(Unauthorized):
        gate.identify({}, "10.0.0.1")


def test_without_keys_callers_are_told_apart_by_header_or_address() -> None:
    """The header that is configured, where it is given, else the address."""
    assert Callers({}).identify({b"x-caller": b"a"}, "10.0.0.1") == "10.0.0.1"
    assert Callers({}, "X-Caller").identify({b"x-caller": b"a"}, "10.0.0.1") == "a"
    assert Callers({}, "X-Caller").identify({}, "10.0.0.1") == "10.0.0.1"


def test_a_bucket_refills_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst at once, then so many a second, and never more than a burst."""
    now = [0.0]
    monkeypatch.setattr(callers, "monotonic", lambda: now[0])
    bucket = Bucket(rate_per_s=0.5, burst=3)
    for _ in range(3):
        bucket.take()
    with pytest.raises(RateLimited) as refused:
        bucket.take()
    assert refused.value.retry_after_s == 2
    now[0] += 2.0
    bucket.take()
    now[0] += 1000.0
    for _ in range(3):
        bucket.take()
    with pytest.raises(RateLimited):
        bucket.take()


def test_work_needs_a_key_and_health_does_not(redis_url: str, tmp_path: Path) -> None:
    """401 without, 429 beyond the key's rate, each counted; another caller is not touched."""
    (feed, feed_hash), (search, search_hash) = make_key("feed"), make_key("search")
    file = tmp_path / "keys.json"
    slow = {"sha256": feed_hash, "rate_per_s": 0.001, "burst": 2}
    file.write_text(json.dumps({"feed": slow, "search": {"sha256": search_hash}}))
    with running(settings(redis_url, api_keys_file=file), opener(SCHEMA)) as client:

        def rank(key: str) -> httpx.Response:
            return client.post("/v1/rank", json=request(), headers={"x-api-key": key})

        events = {"user_id": "u1", "events": [event("e")]}
        for refused in (
            client.post("/v1/rank", json=request()),
            client.post("/v1/events", json=events),
            client.put("/v1/users/u1", json=profile()),
        ):
            assert refused.status_code == 401
            assert refused.json()["error"]["type"] == "unauthorized"
        assert [rank(feed).status_code for _ in range(3)] == [200, 200, 429]
        assert rank(feed).json()["error"]["type"] == "rate_limited"
        assert int(rank(feed).headers["retry-after"]) > 100
        assert rank(search).status_code == 200
        text = client.get("/metrics").text
    assert 'mtgr_refused_total{reason="unauthorized",scene="none"} 3.0' in text
    assert 'mtgr_refused_total{reason="rate_limited",scene="none"} 3.0' in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "at least one key"),
        ('{"a.b": {"sha256": "' + 64 * "0" + '"}}', "no name with a dot"),
        ('{"a": {"sha256": "secret"}}', "a.sha256"),
        ("not json", "Invalid JSON"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    """Before the server starts, naming the file and what is wrong."""
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(BadSetting, match=words):
        read_keys(file)
    with pytest.raises(BadSetting, match="No such file"):
        read_keys(tmp_path / "nowhere.json")
