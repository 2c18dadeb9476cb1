"""What was slow or degraded is kept whole, and runs again with the scores that were served."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engine_build.replay import replay
from engine_build.runtime.capture import Capture, read_about, read_capture
from engine_build.runtime.package import open_package
from loadtest.material import MARKETPLACE, read_material
from loadtest.traffic import Mix, Traffic
from model_def.batch import PackedBatch, merge
from model_def.config import PackageConfig
from service.backends.inprocess import InProcessBackend, open_model
from service.deadline import Deadline
from service.demo import PACKAGE
from service.ranking import Floats, Run, Shared
from service.settings import ModelSettings
from tests.service.world import running, settings

SCHEMA = open_package(PACKAGE).config.features


class Together:
    """A backend that batches: every request shares its run with the `mates` before it."""

    def __init__(self, inner: InProcessBackend, mates: int):
        self._inner, self._most = inner, mates
        self._mates: list[PackedBatch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def score(
        self, batch: PackedBatch, deadline: Deadline, user_id: str
    ) -> Mapping[str, Floats]:
        """Scores of `batch`, from a run of all."""
        requests = (*self._mates, batch)
        tasks = await self._inner.score(merge(requests, SCHEMA), deadline, user_id)
        self._mates = [*self._mates, batch][-self._most :]
        own = slice(-batch.candidates, None)
        run = Run(requests, len(requests) - 1, tasks)
        return Shared({task: values[own] for task, values in tasks.items()}, run)


def batching(settings: ModelSettings) -> tuple[PackageConfig, Any]:
    """The demo package, batched."""
    config, backend = open_model(settings)
    return config, Together(backend, 3)


@pytest.fixture(scope="module")
def kept(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Captures of four requests, the second to the fourth with batch mates."""
    directory = tmp_path_factory.mktemp("captures")
    config = settings(
        redis_url,
        models={"home": ModelSettings(package=PACKAGE)},
        capture_dir=str(directory),
        capture_slow_ms=0,
        capture_every_s=0,
    )
    traffic = Traffic(read_material(MARKETPLACE), Mix(bad=0, events=0, deadline_ms=10_000))
    with running(config, batching) as client:
        for session in range(4):
            ask = traffic.request(session, 0)
            answer = client.post(
                ask.path, content=ask.body, headers={"content-type": ask.content_type}
            )
            assert answer.status_code == 200, answer.text
    return sorted(directory.glob("capture-*.npz"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(replay, [str(a) for a in arguments])


def test_a_captured_batch_replays_bit_equal_and_a_request_alone_within_1e_5(
    kept: list[Path],
) -> None:
    """With its batch mates the scores are those that were served, bit for bit; alone, close."""
    assert [read_about(path).requests for path in kept] == [1, 2, 3, 4]
    for path in kept:
        result = run(path)
        assert result.exit_code == 0, result.output
        assert "batch: equal bit for bit" in result.output
        assert "(at most 1e-05)" in result.output


def test_a_capture_holds_everything(kept: list[Path]) -> None:
    """Payload, schema, engine with its hash, mates, bucket's place, stages and scores given."""
    capture = read_capture(kept[-1], SCHEMA)
    about = capture.about
    assert (about.why, about.ranked_by, about.scene) == ("slow", "model", "home")
    assert about.origin.package == str(PACKAGE.resolve())
    assert about.origin.manifest_sha256
    assert len(capture.requests) == 4
    assert {"features", "pack", "backend"} <= set(about.stages_ms)
    served = {task: values[capture.rows] for task, values in capture.tasks.items()}
    np.testing.assert_allclose(capture.scores, served["ctcvr"], rtol=1e-6)
    assert len(capture.item_ids) == len(served["ctr"])


def test_a_changed_score_is_noticed(kept: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay fails where the engine that served gives something else now."""

    def changed(path: Path, schema: Any) -> Capture:
        capture = read_capture(path, schema)
        tasks = {task: np.nextafter(v, np.float32(1)) for task, v in capture.tasks.items()}
        return Capture(capture.about, capture.requests, tasks, capture.item_ids, capture.scores)

    monkeypatch.setattr("engine_build.replay.read_capture", changed)
    result = run(kept[0])
    assert result.exit_code == 1
    assert "batch: largest difference" in result.output


def test_a_file_that_is_no_capture_is_said_to_be_none(tmp_path: Path) -> None:
    """A torn or foreign file is refused in words."""
    torn = tmp_path / "capture.npz"
    torn.write_bytes(b"PK\x03\x04 nonsense")
    result = run(torn)
    assert result.exit_code == 1
    assert "not a capture of this version" in result.output


def test_captures_are_bounded_and_sampled(redis_url: str, tmp_path: Path) -> None:
    """The oldest leave; of one reason no more than one in the set time is kept; nobody's name is
    in the file."""
    more: dict[str, Any] = {"models": {"home": ModelSettings(package=PACKAGE)}}
    for name, every_s, files, expected in (("all", 0, 2, 2), ("seldom", 3600, 9, 1)):
        directory = tmp_path / name
        config = settings(
            redis_url,
            capture_dir=str(directory),
            capture_slow_ms=0,
            capture_every_s=every_s,
            capture_files=files,
            **more,
        )
        traffic = Traffic(read_material(MARKETPLACE), Mix(bad=0, events=0, deadline_ms=10_000))
        with running(config, open_model) as client:
            for session in range(4):
                ask = traffic.request(session, 0)
                headers = {"content-type": ask.content_type}
                client.post(ask.path, content=ask.body, headers=headers)
        files_left = sorted(directory.iterdir())
        assert len(files_left) == expected
        assert not any(b"user_id" in path.read_bytes() for path in files_left)
