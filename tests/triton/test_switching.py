"""One engine takes over from another under steady load, and every request is answered by one of
them."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import httpx
import numpy as np
import pytest

from engine_build.runtime.engine import Scores
from service.backends import generation, switching
from service.backends.inprocess import InProcessBackend
from service.backends.opening import open_model
from service.settings import ModelSettings, Settings
from tests.service.world import request, running, settings
from tests.triton.packages import add, poisoned, retrained
from tests.triton.server import TritonServer

TOKEN = "only operators"
Configured = Callable[[Path], ModelSettings]


@pytest.fixture(params=["inprocess", "triton", "triton-http"])
def configured(request: pytest.FixtureRequest) -> Configured:
    """Every backend, and way to it, keeps the same promise."""
    if request.param == "inprocess":
        return lambda package: ModelSettings(package=package, workers=2)
    server: TritonServer = request.getfixturevalue("triton")
    http = (server.http,) if request.param == "triton-http" else ()
    return lambda package: ModelSettings(
        package=package, backend="triton", triton=(server.address,), triton_http=http
    )


@pytest.fixture
def link(package_dir: Path, tmp_path: Path) -> Path:
    """An alias's package: a link to the first version."""
    path = tmp_path / "live"
    path.symlink_to(package_dir)
    return path


def gateway_settings(redis_url: str, model: ModelSettings) -> Settings:
    return settings(redis_url, models={"home": model}, admin_token=TOKEN)


class Load:
    """Requests one after another on several threads, each answer kept."""

    def __init__(self, client: httpx.Client, threads: int = 3):
        self._client, self._end = client, Event()
        self.answers: list[dict[str, Any]] = []
        self.failures: list[object] = []
        self._threads = [Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        body = request(20)
        for candidate in body["candidates"]:
            candidate["features"]["past_orders"] = 1.0
        while not self._end.is_set():
            try:
                answer = self._client.post("/v1/rank", json=body)
            except httpx.HTTPError as error:
                self.failures.append(error)
                continue
            if answer.status_code != 200:
                self.failures.append((answer.status_code, answer.text))
                continue
            self.answers.append(answer.json())

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Let it run until something holds."""
        end = monotonic() + seconds
        while not condition():
            assert monotonic() < end, "waited in vain"
            self._threads[0].join(0.01)

    def more(self, count: int = 30) -> None:
        """Let it run for some more answers."""
        wanted = len(self.answers) + count
        self.until(lambda: len(self.answers) >= wanted)

    def versions(self) -> Counter[tuple[str, str | None]]:
        """Answers by version and reason of degradation."""
        return Counter((a["model_version"], a["reason"]) for a in self.answers)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._end.set()
            for thread in self._threads:
                thread.join()


def switch(client: httpx.Client, package: Path, **more: Any) -> httpx.Response:
    """Ask for a switch, as an operator does."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    body = {"package": str(package), **more}
    return client.post("/v1/models/home/switch", json=body, headers=headers, timeout=120)


def scores_of(answer: dict[str, Any]) -> dict[int, float]:
    return {item["item_id"]: item["ctr"] for item in answer["items"]}


def offer(request: pytest.FixtureRequest, package: Path) -> Path:
    """Have the package's engine where the backend will look for it."""
    if "triton" in request.node.name:
        add(request.getfixturevalue("repository"), package)
    return package


def outcomes(client: httpx.Client) -> dict[str, float]:
    """Switches by outcome, of the metrics, where there were any."""
    lines = client.get("/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("mtgr_switches_total{")]
    every = {line.split('outcome="')[1].split('"')[0]: float(line.split()[-1]) for line in counted}
    return {outcome: count for outcome, count in every.items() if count}


def test_a_switch_under_load_loses_no_request(
    request: pytest.FixtureRequest,
    redis_url: str, configured: Configured, package_dir: Path, link: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Load, warm, compare in the shadow, flip, drain: every request is answered undegraded, by the
    old engine before and the new one after, each with its own scores."""
    new = offer(request, retrained(package_dir, tmp_path / "new", f"new-{request.node.name}"))
    version = f"new-{request.node.name}"
    with (
        running(gateway_settings(redis_url, configured(link)), open_model) as client,
        Load(client).running() as load,
    ):
        load.more()
        answer = switch(client, new, shadow_requests=5)
        assert (answer.status_code, answer.text) == (200, answer.text)
        assert answer.json() == {"alias": "home", "version": version}
        load.more()
        assert outcomes(client) == {"flipped": 1.0}
        text = client.get("/metrics").text
        assert 'mtgr_shadow_difference_count{model="home"} 5.0' in text
        labels = f'engine="onnx-cpu",model="home",scene="home",version="{version}"'
        assert f"mtgr_model_info{{{labels}}} 1.0" in text
    assert load.failures == []
    assert set(load.versions()) == {("v1", None), (version, None)}
    by_version = {a["model_version"]: scores_of(a) for a in load.answers}
    for item, before in by_version["v1"].items():
        assert by_version[version][item] > before + 0.05
    for answer_ in load.answers:
        expected = by_version[answer_["model_version"]]
        assert scores_of(answer_) == pytest.approx(expected, abs=1e-4)


def test_a_poisoned_engine_is_refused(
    request: pytest.FixtureRequest,
    redis_url: str, configured: Configured, package_dir: Path, link: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """An engine whose scores are not its golden requests' never serves: the operator is told why,
    and the old engine answers every request."""
    bad = offer(request, poisoned(package_dir, tmp_path / "bad", f"bad-{request.node.name}"))
    with (
        running(gateway_settings(redis_url, configured(link)), open_model) as client,
        Load(client).running() as load,
    ):
        load.more()
        answer = switch(client, bad)
        assert answer.status_code == 409
        assert "scores differ from PyTorch's" in answer.json()["error"]["problem"]
        load.more()
        assert outcomes(client) == {"refused": 1.0}
    assert load.failures == []
    assert set(load.versions()) == {("v1", None)}


def test_the_alias_is_followed(
    request: pytest.FixtureRequest,
    redis_url: str, configured: Configured, package_dir: Path, link: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Pointing the link at another package switches to it, without a request lost; a package that
    cannot serve is refused once, and the one before it serves on."""
    version = f"linked-{request.node.name}"
    new = offer(request, retrained(package_dir, tmp_path / "new", version))
    empty = tmp_path / "empty"
    empty.mkdir()

    def point_at(target: Path) -> None:
        (tmp_path / "next").symlink_to(target)
        (tmp_path / "next").rename(link)

    with (
        running(gateway_settings(redis_url, configured(link)), open_model) as client,
        Load(client).running() as load,
    ):
        load.more()
        point_at(empty)
        load.until(lambda: outcomes(client) == {"refused": 1.0})
        point_at(new)
        load.until(lambda: load.answers[-1]["model_version"] == version)
        load.more()
        assert outcomes(client) == {"refused": 1.0, "flipped": 1.0}
    assert load.failures == []
    assert set(load.versions()) == {("v1", None), (version, None)}


def test_a_burst_of_errors_goes_back(
    request: pytest.FixtureRequest,
    redis_url: str, configured: Configured, package_dir: Path, link: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """An engine that passes every check and then fails its requests is replaced by the one before
    it, which was kept loaded; the failed requests were answered all the same, degraded."""
    version = f"failing-{request.node.name}"
    new = offer(request, retrained(package_dir, tmp_path / "new", version))
    broken: list[Any] = []

    def open_and_remember(model: ModelSettings) -> Any:
        config, backend = open_model(model)
        broken[:] = [backend] if config.version == version else broken
        return config, backend

    with (
        running(gateway_settings(redis_url, configured(link)), open_and_remember) as client,
        Load(client).running() as load,
    ):
        load.more()
        assert switch(client, new).status_code == 200
        load.more()
        break_down(broken[0])
        load.until(lambda: outcomes(client).get("rolled_back") == 1.0)
        load.until(lambda: load.answers[-1]["model_version"] == "v1")
        load.more()
        last = load.answers[-20:]
    assert load.failures == []
    assert ("v1", None) in {(a["model_version"], a["reason"]) for a in last}
    assert {a["model_version"] for a in last} == {"v1"}
    timeouts = ("triton_timeout", "backend_timeout", "features_timeout")  # of a busy machine
    degraded = [a for a in load.answers if a["reason"] not in (None, *timeouts)]
    assert generation.BURST <= len(degraded) <= 50
    assert {a["model_version"] for a in degraded} == {version}


def break_down(backend: Any) -> None:
    """Have a running backend's engine fail."""
    if isinstance(backend, InProcessBackend):
        backend._engine.run = lambda batch: Scores({"ctr": np.full(batch.candidates, np.nan)})
    else:
        for server in backend._servers:
            model = server.config.model.model_copy(update={"tasks": ("no such output",)})
            config = server.config.model_copy(update={"model": model})
            server.calls._form = type(server.calls._form)(server.name, config, server._packed)


def test_an_engine_that_lasts_is_kept(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
    redis_url: str, configured: Configured, package_dir: Path, link: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """After its probation the old engine is drained and closed, and another switch may come; none
    may during it."""
    first = offer(request, retrained(package_dir, tmp_path / "a", f"a-{request.node.name}"))
    monkeypatch.setattr(switching, "PROBATION_S", 3.0)
    with (
        running(gateway_settings(redis_url, configured(link)), open_model) as client,
        Load(client).running() as load,
    ):
        assert switch(client, first).status_code == 200
        refused = switch(client, package_dir)
        assert refused.status_code == 409
        assert "under way" in refused.json()["error"]["problem"]
        load.until(lambda: outcomes(client).get("kept") == 1.0)
        load.until(lambda: switch(client, package_dir).status_code == 200)
        load.more()
    assert load.failures == []
    assert {reason for _, reason in load.versions()} == {None}


def test_only_operators_switch(redis_url: str, package_dir: Path) -> None:
    """Without the token, or without a token in the settings, nobody switches anything."""
    model = ModelSettings(package=package_dir)
    body = {"package": str(package_dir)}
    with running(gateway_settings(redis_url, model), open_model) as client:
        path = "/v1/models/home/switch"
        assert client.post(path, json=body).status_code == 403
        wrong = {"authorization": "Bearer guess"}
        assert client.post(path, json=body, headers=wrong).status_code == 403
        right = {"authorization": f"Bearer {TOKEN}"}
        unknown = client.post("/v1/models/other/switch", json=body, headers=right)
        assert unknown.status_code == 422
        assert unknown.json()["error"]["path"] == "path.alias"
    with running(settings(redis_url, models={"home": model}), open_model) as client:
        nothing = {"authorization": "Bearer"}
        assert client.post(path, json=body, headers=nothing).status_code == 403
