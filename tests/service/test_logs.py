"""What is logged is one line that its sender cannot shape, and not too many of them."""

import logging
import re
from queue import SimpleQueue
from threading import Event

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http import endpoints
from service.http.gateway import Gateway
from service.logs import LONGEST, OneRecord, Seldom, safe
from tests.service.world import request


@given(st.text())
def test_an_id_is_one_bounded_printable_line(text: str) -> None:
    """No newline, escape code or foreign character of a caller reaches the log."""
    line = safe(text)
    assert line.isprintable() or not line
    assert line.isascii()
    assert len(line) <= 10 * LONGEST


@given(st.text())
def test_no_text_makes_a_second_record(text: str) -> None:
    """Whatever a message or an exception holds, only its record's first line is not indented, and
    no control character reaches a terminal."""
    written = OneRecord("%(levelname)s %(message)s").format(
        logging.LogRecord(
            "mtgr", logging.ERROR, "", 0, "%s", (text,), (ValueError, ValueError(text), None)
        )
    )
    first, *rest = written.split("\n")
    assert first.startswith("ERROR ")
    assert all(line.startswith("    ") for line in rest)
    assert all(line.isprintable() for line in (first, *rest))


def test_messages_alike_are_seldom_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is written, the flood is counted, information always passes."""
    now = [0.0]
    monkeypatch.setattr("service.logs.monotonic", lambda: now[0])
    seldom = Seldom(every_s=10.0)

    def passes(level: int, message: str) -> str | None:
        record = logging.LogRecord("mtgr", level, "", 0, message, (), None)
        return record.getMessage() if seldom.filter(record) else None

    assert passes(logging.ERROR, "an engine failed") == "an engine failed"
    assert [passes(logging.ERROR, "an engine failed") for _ in range(3)] == [None] * 3
    assert passes(logging.ERROR, "another") == "another"
    assert [passes(logging.INFO, "ready") for _ in range(2)] == ["ready"] * 2
    now[0] = 11.0
    assert passes(logging.ERROR, "an engine failed") == (
        "an engine failed (3 more like this before)"
    )


def test_a_bug_of_ours_is_counted_logged_and_not_shown(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 in the one error shape; the log names the request, forged lines and all, in one."""

    async def bug(*arguments: object) -> None:
        raise ZeroDivisionError("secret of ours")

    monkeypatch.setattr(endpoints, "rank", bug)
    response = client.post("/v1/rank", json=request(request_id="r\n2026 INFO forged"))
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "internal"
    assert "secret" not in response.text
    assert "a bug failed request r\\n2026 INFO forged" in caplog.messages
    assert 'mtgr_failed_total{scene="home"} 1.0' in client.get("/metrics").text


def test_a_bug_in_counting_an_answer_fails_nobody(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer has left by then; the bug is counted and logged as any other."""

    def bug(*arguments: object) -> None:
        raise ZeroDivisionError("secret of ours")

    def failed() -> float:
        (told,) = re.findall(r'mtgr_failed_total{scene="home"} (.+)', client.get("/metrics").text)
        return float(told)

    monkeypatch.setattr(Gateway, "record", bug)
    before = failed()
    assert client.post("/v1/rank", json=request(request_id="r")).status_code == 200
    assert failed() == before + 1
    assert "a bug failed request r" in caplog.messages


def test_an_answer_leaves_before_it_is_counted(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller has it while counting goes on."""
    here, counted = Event(), SimpleQueue[bool]()
    monkeypatch.setattr(Gateway, "record", lambda *_: counted.put(here.wait(20)))
    assert client.post("/v1/rank", json=request()).status_code == 200
    here.set()
    assert counted.get(timeout=30)
