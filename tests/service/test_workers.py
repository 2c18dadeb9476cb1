"""Several workers on one port: they share connections, counts add up, one dies, all switch."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from socket import create_connection, create_server, socket
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from model_def.config import PackageConfig
from service.backends.inprocess import InProcessBackend
from service.serve import run
from service.setting_sources import load_settings
from service.settings import ModelSettings, Settings
from tests.conftest import ROOT
from tests.service.gateway_process import gateway_process, hold, loaded, ready
from tests.service.world import SCHEMA, Arithmetic, opener, profile, request

WORKERS = 2
TOKEN = {"authorization": "Bearer secret"}


def opened(settings: ModelSettings) -> tuple[PackageConfig, InProcessBackend]:
    """A package whose version is its directory's name."""
    return opener(SCHEMA, Arithmetic(), settings.package.resolve().name)(settings)


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A service of two workers, and its URL."""
    with tempfile.TemporaryDirectory(prefix="mtgr-") as directory:
        for version in ("one", "two"):
            (Path(directory) / version).mkdir()
        with create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", __name__, directory, str(port)]
        process = subprocess.Popen(command, cwd=ROOT)
        url = f"http://127.0.0.1:{port}"
        try:
            with httpx.Client(base_url=url) as client:
                while not ready(client):
                    assert process.poll() is None
            yield url, process
        finally:
            process.terminate()
            assert process.wait() == 0


def ask(url: str, method: str, path: str, **more: Any) -> httpx.Response:
    """On a connection of its own, so that any worker may take it."""
    return httpx.request(method, f"{url}{path}", timeout=30, **more)


def value(url: str, series: str) -> float:
    """Of one series of /metrics."""
    text = ask(url, "GET", "/metrics").text
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


ANSWERED = 'mtgr_requests_total{outcome="answered",scene="home"}'


def rank_together(url: str, count: int) -> list[httpx.Response]:
    with ThreadPoolExecutor(8) as threads:
        send = partial(ask, url, "POST", "/v1/rank")
        return list(threads.map(lambda _: send(json=request()), range(count)))


def workers(url: str, process: "subprocess.Popen[bytes]") -> list[int]:
    """Process ids of the workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = []
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            if b"valkey" not in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def versions(url: str) -> set[str]:
    """Versions that a worker serves now, by what all of them tell."""
    text = ask(url, "GET", "/metrics").text
    return set(re.findall(r'^mtgr_model_info\{.*version="(\w+)"\} 1\.0$', text, re.MULTILINE))


def test_counts_of_all_workers_add_up(service: tuple[str, Any]) -> None:
    """Whichever worker answers, /metrics tells of all: requests, their histogram, one bad body;
    gauges and the process's memory too; and a killed worker's counts are not lost."""
    url, process = service
    before = value(url, ANSWERED)
    assert {r.status_code for r in rank_together(url, 60)} == {200}
    assert ask(url, "POST", "/v1/rank", json={}).status_code == 422
    told = {
        ANSWERED: before + 60,
        'mtgr_request_seconds_count{scene="home"}': before + 60,
        'mtgr_invalid_total{reason="missing",scene="none"}': 1,
        "mtgr_ready": 1,
        "mtgr_in_flight": 0,
    }
    while any(value(url, series) != number for series, number in told.items()):
        pass  # up to a second old, and the other worker may have been loading
    for _ in range(6):  # several connections, so both workers tell
        assert {series: value(url, series) for series in told} == told
    memory = sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        for pid in workers(url, process)
    )
    assert 0.5 < value(url, "process_resident_memory_bytes") / memory < 2

    victim, other = workers(url, process)
    os.kill(victim, signal.SIGKILL)
    while len(set(workers(url, process)) - {victim}) < WORKERS:
        pass
    assert {r.status_code for r in rank_together(url, 20)} == {200}  # also while one is starting
    while value(url, "mtgr_ready") != 1:
        pass
    assert other in workers(url, process)
    assert value(url, ANSWERED) == before + 80


def connect(url: str) -> socket:
    """A connection that was answered on, and stays open."""
    address = urlsplit(url)
    connection = create_connection((address.hostname, address.port))
    connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: test\r\n\r\n")
    assert connection.recv(4096)
    return connection


def by_worker(
    url: str, process: "subprocess.Popen[bytes]", connections: list[socket]
) -> dict[int, list[socket]]:
    """The connections that each worker has."""
    own = {connection.getsockname()[1]: connection for connection in connections}
    return {
        pid: [own[c.raddr.port] for c in psutil.Process(pid).net_connections() if c.raddr
              and c.laddr.port == urlsplit(url).port and c.raddr.port in own]
        for pid in workers(url, process)
    }  # fmt: skip


def test_connections_are_shared_out(service: tuple[str, Any]) -> None:
    """Each worker has as many as the other, and one whose callers have gone takes the next ones;
    one in ten may go elsewhere, where a worker had no core for two milliseconds."""
    url, process = service
    open_ones = [connect(url) for _ in range(20)]
    try:
        poor, rich = sorted(by_worker(url, process, open_ones).values(), key=len)
        assert len(poor) >= 9
        for connection in poor:
            open_ones.remove(connection)
            connection.close()
        while sorted(map(len, by_worker(url, process, open_ones).values())) != [0, len(rich)]:
            pass
        open_ones += [connect(url) for _ in range(len(rich))]
        assert min(map(len, by_worker(url, process, open_ones).values())) >= len(rich) - 1
    finally:
        for connection in open_ones:
            connection.close()


def test_workers_share_the_embedded_redis(service: tuple[str, Any]) -> None:
    """A user that one of them stores is known to all."""
    url, _ = service
    ask(url, "PUT", "/v1/users/u1", json=profile())
    assert all(r.json()["missing"] == {} for r in rank_together(url, 12))


def test_a_switch_asked_of_one_reaches_all(service: tuple[str, Any]) -> None:
    """All workers serve the other package soon, and so does one that is started after that."""
    url, process = service
    serving = ask(url, "GET", "/v1/models").json()["scenes"]["home"]["version"]
    assert (serving, versions(url)) == ("one", {"one"})
    directory = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[3].decode()
    body = {"package": f"{directory}/two"}
    answer = ask(url, "POST", "/v1/models/home/switch", json=body, headers=TOKEN)
    assert (answer.status_code, answer.json()["version"]) == (200, "two")
    while versions(url) != {"two"}:
        pass
    assert {r.json()["model_version"] for r in rank_together(url, 20)} == {"two"}

    victim = workers(url, process)[0]
    os.kill(victim, signal.SIGKILL)
    while len(set(workers(url, process)) - {victim}) < WORKERS:
        pass
    while value(url, "mtgr_ready") != 1:
        pass
    assert {r.json()["model_version"] for r in rank_together(url, 20)} == {"two"}


def test_a_service_that_is_ready_refuses_nobody(tmp_path: Path) -> None:
    """Whoever loads first, nobody hears that it is ready before the first worker has loaded, and
    from then on nobody hears otherwise. By the default deadline, 200 ms, a worker that has no core
    for 90 of them refuses rightly; that is not what is asked here."""
    file = tmp_path / "settings.toml"
    file.write_text(f"workers = {WORKERS}\ndefault_deadline_ms = 20_000")
    with tempfile.TemporaryDirectory(prefix="mtgr-") as name:
        directory = Path(name)
        hold(directory, 0).touch()

        def only_the_first_is_loading(client: httpx.Client) -> None:
            while not loaded(directory, 1).exists():
                sleep(0.01)
            url = str(client.base_url)
            for _ in range(50):
                assert ask(url, "GET", "/health/ready").status_code == 503
            hold(directory, 0).unlink()

        with gateway_process(directory, file, only_the_first_is_loading) as (client, _):
            url = str(client.base_url).rstrip("/")
            assert not [r.text for r in rank_together(url, 60) if r.status_code != 200]


def test_what_cannot_be_served_ends_all_workers(tmp_path: Path) -> None:
    """With the reason of the one that found out, and no endless restarts."""
    command = [sys.executable, "-m", "mtgr", "serve", str(tmp_path / "nothing"), "--workers", "2"]
    with tempfile.TemporaryDirectory(prefix="mtgr-") as redis_dir:
        command += ["--redis-dir", redis_dir, "--port", "0"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no such directory" in done.stderr
    assert "Traceback" not in done.stderr


if __name__ == "__main__":
    directory, port = sys.argv[1:]
    flags: dict[str, Any] = {
        "models": {"home": {"package": f"{directory}/one"}},
        "redis_dir": f"{directory}/redis",
        "port": port,
        "workers": WORKERS,
        "admin_token": "secret",
        "redis_timeout_ms": 5000,
        "default_deadline_ms": 20_000,
    }
    read = partial(load_settings, flags, Settings)
    run(read(), read, opened)
