"""A real Prometheus scrapes the running service while everything happens that may."""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from service.backends.opening import open_model
from service.demo import PACKAGE, load
from service.features.embedded import embedded_server
from service.observability.names import TRITON_GPU, named
from service.observability.prometheus import running as prometheus_running
from service.settings import ModelSettings
from service.traffic import LiveTraffic
from tests.observability.conftest import program
from tests.observability.test_names import BOARDS, queries
from tests.service.world import running, settings
from tests.triton.install import Unavailable, install
from tests.triton.packages import add
from tests.triton.server import TritonServer

PATIENCE_S = 90.0
"""For the last query to have data; counters need two scrapes after their first event."""

TOKEN = "of the tests"


@dataclass(frozen=True)
class Watched:
    """A gateway under traffic, and the Prometheus that scrapes it."""

    gateway: httpx.Client
    prometheus: str

    def ask(self, path: str, **parameters: str) -> dict[str, list[dict[str, object]]]:
        """Data of Prometheus's answer."""
        answer = httpx.get(f"{self.prometheus}/api/v1/{path}", params=parameters)
        assert answer.status_code == httpx.codes.OK, (parameters, answer.text)
        data: dict[str, list[dict[str, object]]] = answer.json()["data"]
        return data


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The demo's package in-process and in a real Triton, a real Redis, a real Prometheus."""
    try:
        home = install()
    except Unavailable as reason:
        pytest.skip(f"NOT CHECKED: no Triton server here: {reason}")
    directory = tmp_path_factory.mktemp("watched")
    (directory / "triton").mkdir()
    add(directory / "triton", PACKAGE)
    triton_metrics = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            TritonServer(home, directory / "triton", metrics_port=triton_metrics)
        )
        redis_url = stack.enter_context(embedded_server(directory / "r"))
        asyncio.run(load(LiveTraffic("", candidates=1).past, redis_url))
        config = settings(
            redis_url,
            models={
                "home": ModelSettings(package=PACKAGE),
                "remote": ModelSettings(
                    package=PACKAGE, backend="triton", triton=(server.address,)
                ),
            },
            default_scene="home",
            admin_token=TOKEN,
            request_log_dir=str(directory / "log"),
            request_log_file_s=1.0,
        )
        gateway = stack.enter_context(running(config, open_model))
        address = gateway.base_url.netloc.decode()
        targets = {
            "mtgr-gateway": [address],
            "triton": [f"127.0.0.1:{triton_metrics}"],
        }
        url = stack.enter_context(
            prometheus_running(
                directory / "prometheus", free_port(), targets, program("prometheus")
            )
        )
        over = threading.Event()
        thread = threading.Thread(target=live, args=(gateway, directory, over))
        thread.start()
        try:
            yield Watched(gateway, url)
        finally:
            over.set()
            thread.join()


def live(gateway: httpx.Client, directory: Path, over: threading.Event) -> None:
    """Users, mistakes, haste, callers that leave, and a switch with a shadow: until `over`."""
    url = str(gateway.base_url)
    traffic = LiveTraffic(url, candidates=20)
    other = directory / "other"
    shutil.copytree(PACKAGE, other)

    def switch() -> None:
        httpx.post(
            f"{url}/v1/models/home/switch",
            json={"package": str(other), "shadow_requests": 3},
            headers={"authorization": f"Bearer {TOKEN}"},
            timeout=60,
        ).raise_for_status()

    switching = threading.Thread(target=switch)
    switching.start()
    while not over.is_set():
        asyncio.run(traffic.drive(rate_per_s=10, seconds=2))
        mishaps(url, traffic)
    switching.join()


def mishaps(url: str, traffic: LiveTraffic) -> None:
    """A mistake, a deadline that cannot be met, one that only Redis cannot, a request of the other
    scene, and a caller that leaves half-way."""
    _, asked = traffic.ask()
    httpx.post(f"{url}/v1/rank", json={"user_id": 7})
    for deadline_ms in (1, 11, 12, 14):
        httpx.post(f"{url}/v1/rank", json=asked | {"deadline_ms": deadline_ms})
    httpx.post(f"{url}/v1/rank", json=asked | {"scene": "remote"}).raise_for_status()
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")


def test_a_live_scrape_is_clean(watched: Watched, promtool: str) -> None:
    """`promtool check metrics` finds nothing to say about names, units, types and help texts."""
    watched.ask("query", query="up")
    text = watched.gateway.get("/metrics").content
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (done.stdout + done.stderr).decode() == ""
    assert done.returncode == 0


def test_every_query_of_every_dashboard_returns_data(watched: Watched) -> None:
    """All but those about a GPU, which is not here."""
    empty = {
        (board.uid, title, expr)
        for board in BOARDS
        for title, expr in queries(board)
        if not named(expr) & TRITON_GPU and "offset 1h" not in expr
    }
    until = monotonic() + PATIENCE_S
    while empty and monotonic() < until:
        empty = {q for q in empty if not watched.ask("query", query=q[2])["result"]}
        sleep(0.2)
    assert not empty, json.dumps(sorted(empty), indent=2)


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    """By the server itself, on real series; and a healthy service raises no cause."""
    until = monotonic() + PATIENCE_S
    while True:
        rules = [r for g in watched.ask("rules")["groups"] for r in g["rules"]]  # type: ignore[attr-defined]
        if all(rule["health"] == "ok" for rule in rules) or monotonic() > until:
            break
        sleep(0.2)
    assert {rule["health"] for rule in rules} == {"ok"}, [r.get("lastError") for r in rules]
