"""Readiness: until the engine is warm the service says so, and ranks nothing; from then on no
request waits for what could have been there before."""

import resource
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import msgspec
import pytest

from engine_build.runtime.engine import Scores
from model_def.batch import PackedBatch
from tests.service.gateway_process import gateway_process
from tests.service.world import (
    SCHEMA,
    Arithmetic,
    as_columns,
    event,
    opener,
    profile,
    request,
    running,
    settings,
)


class Loading(Arithmetic):
    """An engine whose warm-up waits for leave."""

    def __init__(self, leave: Event) -> None:
        self._leave = leave

    def run(self, batch: PackedBatch) -> Scores:
        self._leave.wait()
        return super().run(batch)


def test_nothing_is_ranked_before_the_engine_is_warm(redis_url: str) -> None:
    """Live and not ready: 503 on both until the warm-up has run, and then 200."""
    leave = Event()
    seen: list[tuple[int, int, int]] = []

    def look(client: httpx.Client) -> None:
        seen.append(
            (
                client.get("/health/live").status_code,
                client.get("/health/ready").status_code,
                client.post("/v1/rank", json=request()).status_code,
            )
        )
        leave.set()

    with running(settings(redis_url), opener(SCHEMA, Loading(leave)), while_loading=look) as client:
        assert client.post("/v1/rank", json=request()).status_code == 200
    assert seen == [(200, 503, 503)]


def test_nothing_is_imported_for_a_request(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is ready has all of its code: an import stops every request for as long as it
    takes, tens of milliseconds for some. Of requests in each format, of those that wait for their
    turn, of captures and the request log, and of what is refused."""
    file = tmp_path / "settings.toml"
    file.write_text(
        "max_in_flight = 1\nmax_waiting = 1000\ndefault_deadline_ms = 10000\n"
        f"capture_slow_ms = 0\ncapture_dir = '{tmp_path / 'captures'}'\n"
        f"request_log_file_s = 0.01\nrequest_log_dir = '{tmp_path / 'log'}'\n"
    )
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    rows = request(40)
    columns = rows | {"candidates": as_columns(rows["candidates"])}
    packed = {"content-type": "application/msgpack"}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", "/v1/users/u1", {"json": profile()}),
        ("POST", "/v1/events", {"json": {"user_id": "u1", "events": [event("e1")]}}),
        ("POST", "/v1/rank", {"json": rows}),
        ("POST", "/v1/rank", {"json": columns}),
        ("POST", "/v1/rank", {"content": msgspec.msgpack.encode(columns), "headers": packed}),
        ("POST", "/v1/rank?explain=true", {"json": rows}),
        ("POST", "/v1/rank", {"json": {"user_id": 5}}),
        ("POST", "/v1/rank", {"content": b"["}),
    ]
    with (
        tempfile.TemporaryDirectory(prefix="mtgr-") as name,
        gateway_process(Path(name), file) as (client, _),
        ThreadPoolExecutor(24) as pool,
    ):
        assert "import time:" in capfd.readouterr().err
        answers = list(pool.map(lambda r: client.request(r[0], r[1], **r[2]), 8 * requests))
        while 'mtgr_captures_total{outcome="written"}' not in client.get("/metrics").text:
            pass
        while not [*(tmp_path / "log").rglob("*.parquet")]:
            pass
        told_since = capfd.readouterr().err
    assert {answer.status_code for answer in answers} == {200, 422}
    assert [line for line in told_since.splitlines() if "import time:" in line] == []


@pytest.mark.parametrize(("soft", "hard"), [(1000, 7000), (1000, 3000)])
def test_a_process_has_room_for_every_connection_before_it_is_ready(
    soft: int, hard: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The limit of open files is raised to what is wanted, or to what the system allows, and then
    the log warns; and the kernel's table of them need not grow for a caller, which would stop every
    other request for tens of milliseconds."""
    most, file = 5000, tmp_path / "settings.toml"
    file.write_text(f"max_connections = {most}")
    with (
        tempfile.TemporaryDirectory(prefix="mtgr-") as name,
        gateway_process(Path(name), file, limit_files=(soft, hard)) as (_, process),
    ):
        status = Path(f"/proc/{process.pid}/status").read_text()
        allowed, _ = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    (slots,) = (line.split()[1] for line in status.splitlines() if line.startswith("FDSize:"))
    assert min(most, hard) <= allowed <= int(slots)
    assert ("open files are allowed" in capfd.readouterr().err) == (hard < most)
