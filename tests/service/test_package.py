"""A real package over real HTTP and a real Redis: what is served is what PyTorch scores."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_build.package import pytorch_scores
from engine_build.runtime.manifest import Manifest, sha256_of
from model_def.batch import Sample, pack
from model_def.checkpoint import Checkpoint
from model_def.rows import rows_from_columns
from service.backends.inprocess import open_model
from service.http.validate import event_hash
from service.settings import ModelSettings
from tests.conftest import ROOT
from tests.engine_build.conftest import checkpoint, checkpoint_dir, package_dir  # noqa: F401 - used
from tests.model_def.cases import SCHEMA
from tests.service.world import NOW_MS, SNAPSHOT_MS, event, profile, request, running, settings


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row["features"][name] for row in rows] for name in rows[0]["features"]}


def test_served_probabilities_are_pytorchs(
    redis_url: str,
    checkpoint: Checkpoint,  # noqa: F811 - the fixture
    package_dir: Path,  # noqa: F811 - the fixture
) -> None:
    """Through HTTP, Redis and ONNX Runtime, CTR and CTCVR differ by at most 1e-4."""
    user, body = profile(4), request(9)
    for candidate in body["candidates"]:
        candidate["features"]["past_orders"] = 0.5 * candidate["item_id"]
    events = [event(name, NOW_MS - 1000 * age) for name, age in (("a", 9), ("b", 3), ("c", 5))]
    config = settings(redis_url, models={"home": ModelSettings(package=package_dir)})
    with running(config, open_model) as client:
        assert client.put("/v1/users/u1", json=user).status_code == 200
        assert (
            client.post("/v1/events", json={"user_id": "u1", "events": events}).status_code == 200
        )
        answer = client.post("/v1/rank", json=body).json()
        version = client.get("/v1/models").json()["scenes"]["home"]["version"]

    layouts = SCHEMA.layouts
    past = {"time_ms": [row["timestamp"] for row in user["lifelong"]]}
    recent = {
        "event_id": [event_hash(e["event_id"]) for e in events],
        "time_ms": [e["timestamp"] for e in events],
    }
    ids = [candidate["item_id"] for candidate in body["candidates"]]
    shown = columns(body["candidates"]) | {"item_id": ids}
    sample = Sample(
        snapshot_ms=SNAPSHOT_MS,
        profile=rows_from_columns(
            layouts["profile"], {name: [value] for name, value in user["profile"].items()}, 1
        ),
        lifelong=rows_from_columns(layouts["lifelong"], columns(user["lifelong"]), 4, past),
        realtime=rows_from_columns(layouts["realtime"], columns(events), 3, recent),
        context=rows_from_columns(layouts["context"], {"hour": [12]}, 1, {"time_ms": [NOW_MS]}),
        candidates=rows_from_columns(layouts["candidate"], shown, len(ids)),
        context_candidates=np.array([len(ids)], np.int32),
    )
    expected = pytorch_scores(checkpoint.model, pack(SCHEMA, sample))
    assert (answer["ranked_by"], answer["missing"]) == ("model", {})
    assert answer["model_version"] == version == "v1"
    for task, probabilities in expected.items():
        by_item = dict(zip(ids, probabilities.tolist(), strict=True))
        for item in answer["items"]:
            assert item[task] == pytest.approx(by_item[item["item_id"]], abs=1e-4)


def start_and_fail(package: Path, redis_dir: Path) -> str:
    """What `mtgr serve` of a package that may not be served says at its end."""
    command = [sys.executable, "-m", "mtgr", "serve", str(package), "--port", "0"]
    command += ["--redis-dir", str(redis_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_changed_byte_is_refused_at_start_with_the_files_name(
    package_dir: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    """The process ends in words that name the file, and nothing was served."""
    package = tmp_path / "package"
    shutil.copytree(package_dir, package)
    model = package / "onnx-cpu" / "model.onnx"
    damaged = bytearray(model.read_bytes())
    damaged[-1] ^= 1
    model.write_bytes(damaged)
    assert str(model) in start_and_fail(package, tmp_path / "r")


def test_an_engine_of_another_model_stops_the_server(
    package_dir: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    """Golden requests that do not replay end the process: it never becomes ready."""
    package = tmp_path / "package"
    shutil.copytree(package_dir, package)
    with np.load(package / "golden.npz") as saved:
        golden = {name: v + 0.5 if v.dtype == np.float32 else v for name, v in saved.items()}
    np.savez(package / "golden.npz", **golden)
    path = package / "onnx-cpu" / "manifest.json"
    manifest = Manifest.read(path)
    files = {name: sha256_of(package / name) for name in manifest.files}
    manifest.model_copy(update={"files": files}).write(path)
    assert "cannot be served" in start_and_fail(package, tmp_path / "r")
