"""What is logged is one line that its sender cannot shape, and not too many of them."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.logs import LONGEST, Seldom, safe


@given(st.text())
def test_an_id_is_one_bounded_printable_line(text: str) -> None:
    """No newline, escape code or foreign character of a caller reaches the log."""
    line = safe(text)
    assert line.isprintable() or not line
    assert line.isascii()
    assert len(line) <= 10 * LONGEST


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
