"""HTTP -> gateway -> gRPC or HTTP -> Triton -> onnx-cpu: the same answers as in-process, and a
promised one for each failure."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from service.backends.opening import open_model
from service.settings import ModelSettings
from tests.service.world import profile, request, running, settings
from tests.triton.packages import add, retrained
from tests.triton.server import TritonServer


def through_triton(package: Path, server: TritonServer, by: str, **more: Any) -> ModelSettings:
    """The package's engine at that server, asked by gRPC or HTTP."""
    http = (server.http,) if by == "http" else ()
    return ModelSettings(
        package=package, backend="triton", triton=(server.address,), triton_http=http, **more
    )


@pytest.fixture(params=["grpc", "http"])
def by(request: pytest.FixtureRequest) -> str:
    """Both ways keep the same promises."""
    return str(request.param)


@pytest.fixture
def client(
    redis_url: str, package_dir: Path, own_triton: TritonServer, by: str
) -> Iterator[httpx.Client]:
    """A gateway over a server that the test may stop."""
    model = through_triton(package_dir, own_triton, by)
    config = settings(redis_url, models={"home": model}, answer_reserve_ms=150)  # shared cores
    with running(config, open_model) as client:
        yield client


def rank(client: httpx.Client, count: int = 5, **more: Any) -> dict[str, Any]:
    """An answer, which is always 200: with the reason where it is degraded."""
    body = request(count, top_k=count, **more)
    for place, candidate in enumerate(body["candidates"]):
        candidate["recall_score"] = float(place)
        candidate["features"]["past_orders"] = 1.0
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == 200, answer.text
    decoded: dict[str, Any] = answer.json()
    assert len(decoded["items"]) == count
    return decoded


def recovers(client: httpx.Client) -> dict[str, Any]:
    """The first answer of the model's; each before it is degraded."""
    end = monotonic() + 60
    while monotonic() < end:
        answer = rank(client)
        if answer["ranked_by"] == "model":
            return answer
    raise AssertionError("the model did not come back")


@pytest.mark.parametrize("shared_requests", [0, 8])
def test_scores_equal_those_in_process(
    redis_url: str, package_dir: Path, triton: TritonServer, by: str, shared_requests: int
) -> None:
    """For users with and without history, every probability differs by at most 1e-4."""
    models = {
        "here": ModelSettings(package=package_dir),
        "there": through_triton(package_dir, triton, by, shared_requests=shared_requests),
    }
    config = settings(redis_url, models=models, default_scene="here")
    with running(config, open_model) as client:
        for user in ("u1", "nobody"):
            client.put("/v1/users/u1", json=profile(7))
            here, there = (
                rank(client, 40, user_id=user, scene=scene) for scene in ("here", "there")
            )
            assert here["ranked_by"] == there["ranked_by"] == "model"
            by_item = {item["item_id"]: item for item in here["items"]}
            for item in there["items"]:
                for value in ("score", "ctr", "ctcvr"):
                    assert item[value] == pytest.approx(by_item[item["item_id"]][value], abs=1e-4)


def test_a_hanging_server_degrades_in_time(client: httpx.Client, own_triton: TritonServer) -> None:
    """The answer comes before the caller's deadline, ranked by recall score, with the reason."""
    assert rank(client)["ranked_by"] == "model"
    own_triton.pause()
    timings: list[str] = []
    client.event_hooks["response"] = [lambda r: timings.append(r.headers["server-timing"])]
    answer = rank(client, deadline_ms=1000)
    client.event_hooks["response"] = []
    own_triton.resume()
    assert 800 < float(timings[0].rsplit("total;dur=")[1]) < 1000
    assert (answer["ranked_by"], answer["reason"]) == ("recall_score", "triton_timeout")
    assert [item["item_id"] for item in answer["items"]] == [5, 4, 3, 2, 1]
    recovers(client)


def test_a_killed_server_degrades_and_a_restarted_one_serves(
    client: httpx.Client, own_triton: TritonServer
) -> None:
    """Every request in between is answered; the gateway stays ready, since it can answer."""
    assert rank(client)["ranked_by"] == "model"
    own_triton.kill()
    for _ in range(3):
        answer = rank(client)
        assert (answer["ranked_by"], answer["reason"]) == ("recall_score", "triton_unavailable")
        assert client.get("/health/ready").status_code == 200
    own_triton.start()
    assert recovers(client)["model_version"] == "v1"


def test_a_full_queue_degrades(
    redis_url: str, package_dir: Path, triton: TritonServer, by: str
) -> None:
    """What exceeds the queue is ranked without the model at once, and counted by reason."""
    import concurrent.futures

    model = through_triton(package_dir, triton, by, queue=1)
    with (
        running(settings(redis_url, models={"home": model}), open_model) as client,
        concurrent.futures.ThreadPoolExecutor(8) as threads,
    ):
        answers = list(threads.map(lambda _: rank(client, 300), range(40)))
        text = client.get("/metrics").text
    reasons = {answer["reason"] for answer in answers}
    assert reasons == {None, "triton_queue_full"}
    full = sum(answer["reason"] is not None for answer in answers)
    label = 'reason="triton_queue_full",scene="home"'
    assert f'mtgr_degraded_total{{ranked_by="recall_score",{label}}} {float(full)}' in text


def test_a_gateway_waits_for_its_server_and_says_so(
    redis_url: str, package_dir: Path, triton_home: Path, tmp_path: Path
) -> None:
    """Server down, then up without the model, then with it: readiness is false with the reason and
    the fix until the model has been loaded and verified."""
    repository = tmp_path / "repository"
    repository.mkdir()
    server = TritonServer(triton_home, repository)
    seen: list[str] = []

    def wait_for(client: httpx.Client, words: str) -> None:
        end = monotonic() + 60
        while monotonic() < end:
            answer = client.get("/health/ready")
            if answer.status_code == 503 and words in answer.json()["error"]["problem"]:
                seen.append(answer.json()["error"]["problem"])
                return
        raise AssertionError(f"never said {words!r}: {answer.text}")

    def meanwhile(client: httpx.Client) -> None:
        wait_for(client, "does not answer; start it")
        server.start()
        wait_for(client, "its repository has no model cases-v1-onnx-cpu, only []")
        assert client.post("/v1/rank", json=request(2)).status_code == 503
        add(repository, package_dir)

    model = through_triton(package_dir, server, "http")
    try:
        config = settings(redis_url, models={"home": model})
        with running(config, open_model, while_loading=meanwhile) as client:
            assert rank(client)["ranked_by"] == "model"
    finally:
        server.close()
    assert "mtgr repository" in seen[1]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("engine", "model.onnx: sha256"),
        ("another build", "two builds of one version"),
        ("another schema", "takes other inputs than the schema"),
        ("golden", "scores differ from PyTorch's"),
    ],
)
def test_a_model_that_is_not_the_packages_is_refused(
    redis_url: str,
    package_dir: Path,
    triton: TritonServer,
    repository: Path,
    tmp_path: Path,
    damage: str,
    words: str,
) -> None:
    """Readiness stays false, and the reason names what is wrong, with the fix."""
    version = damage.replace(" ", "-")
    package = retrained(package_dir, tmp_path / "package", version)
    name = add(repository, package)
    config_file = repository / name / "config.pbtxt"
    if damage == "engine":
        (repository / name / "1" / "onnx-cpu" / "model.onnx").write_bytes(b"not this")
    elif damage == "another build":
        checkpoint = '"checkpoint_sha256"\n  value {\n    string_value: "'
        config_file.write_text(config_file.read_text().replace(checkpoint, checkpoint + "0"))
    elif damage == "another schema":
        text = config_file.read_text().replace('"profile_numbers"', '"profile_other"')
        config_file.write_text(text)
    else:
        package = retrained(package_dir, tmp_path / "other", version)
        shift_golden(package)

    class Refused(Exception):
        pass

    def meanwhile(client: httpx.Client) -> None:
        end = monotonic() + 90
        while monotonic() < end:
            problem = client.get("/health/ready").json()["error"]["problem"]
            if words in problem:
                raise Refused
        raise AssertionError(problem)

    config = settings(redis_url, models={"home": through_triton(package, triton, "http")})
    with pytest.raises(Refused), running(config, open_model, while_loading=meanwhile):
        pass


def shift_golden(package: Path) -> None:
    """Golden scores of another model, as a package mixed up of two builds has them."""
    from engine_build.runtime.golden import Golden, load_golden, save_golden
    from tests.model_def import cases
    from tests.triton.packages import sign

    file = package / "golden.npz"
    golden = load_golden(file, cases.SCHEMA)
    shifted = [Golden(g.request, {t: v + 0.01 for t, v in g.scores.items()}) for g in golden]
    save_golden(file, shifted)
    sign(package)
