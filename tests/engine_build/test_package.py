"""A package loads whole or not at all, and its engine scores as PyTorch does."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_build.build import BuildError
from engine_build.package import build_package, pytorch_scores
from engine_build.requests import random_request
from engine_build.runtime.engine import Engine
from engine_build.runtime.golden import ParityError, load_golden, save_golden
from engine_build.runtime.manifest import Manifest, sha256_of
from engine_build.runtime.package import PackageError, open_package
from model_def.batch import PackedBatch, from_arrays, merge
from model_def.checkpoint import Checkpoint, save
from model_def.model import MTGR
from tests.conftest import ROOT
from tests.model_def import cases

SIZES = [(7, 3, 5), (0, 0, 1), (12, 5, 2), (1, 1, 1), (0, 4, 3), (9, 0, 30)]
"""(lifelong, real-time, candidates) of requests, the awkward ones among them."""


@pytest.fixture(scope="module")
def engine(package_dir: Path) -> Engine:
    return open_package(package_dir).load_engine("onnx-cpu")


@pytest.fixture(scope="module")
def requests() -> list[PackedBatch]:
    rng = np.random.default_rng(3)
    known = {name: table.ids for name, table in cases.id_tables().items()}
    return [random_request(cases.SCHEMA, rng, *size, known) for size in SIZES]


@pytest.fixture
def copied(package_dir: Path, tmp_path: Path) -> Path:
    """A copy of the package, to be spoiled."""
    return Path(shutil.copytree(package_dir, tmp_path / "package"))


@pytest.fixture
def with_tensorrt(copied: Path) -> Path:
    """The copy with an engine of another kind, from another machine."""
    shutil.copytree(copied / "onnx-cpu", copied / "tensorrt")
    manifest = Manifest.read(copied / "tensorrt" / "manifest.json")
    files = {name.replace("onnx-cpu/", "tensorrt/"): h for name, h in manifest.files.items()}
    other = manifest.model_copy(update={"kind": "tensorrt", "files": files})
    other.write(copied / "tensorrt" / "manifest.json")
    return copied


def assert_scores(given: Any, expected: Any, atol: float) -> None:
    assert set(given) == set(expected) == {"ctr", "ctcvr"}
    for task, values in expected.items():
        assert given[task].dtype == np.float32
        np.testing.assert_allclose(given[task], values, rtol=0, atol=atol)


def test_engine_equals_pytorch(
    engine: Engine, requests: list[PackedBatch], checkpoint: Checkpoint
) -> None:
    """Scores equal PyTorch's within 1e-4, for empty sequences and one candidate too."""
    for request in requests:
        assert_scores(engine.run(request).tasks, pytorch_scores(checkpoint.model, request), 1e-4)


def test_batch_equals_single(engine: Engine, requests: list[PackedBatch]) -> None:
    """A request's scores in a batch are its scores alone."""
    together = engine.run(merge(requests, cases.SCHEMA)).tasks
    alone = [engine.run(request).tasks for request in requests]
    assert_scores(
        together, {t: np.concatenate([s[t] for s in alone]) for t in ("ctr", "ctcvr")}, 1e-5
    )


def test_padding_does_not_matter(engine: Engine, requests: list[PackedBatch]) -> None:
    """Rows after a segment's last offset change no score, whatever they hold."""
    batch = merge(requests, cases.SCHEMA)
    arrays = dict(batch.arrays)
    for spec in cases.SCHEMA.arrays:
        if spec.rows in ("lifelong", "realtime", "candidate"):
            junk = np.full(3 * spec.width, 1, spec.dtype)
            if spec.dtype.kind == "f":
                junk[:] = np.nan
            arrays[spec.name] = np.concatenate([arrays[spec.name], junk])
    padded = engine.run(from_arrays(cases.SCHEMA, arrays)).tasks
    assert_scores(
        {task: scores[: batch.candidates] for task, scores in padded.items()},
        engine.run(batch).tasks,
        1e-6,
    )


@pytest.mark.parametrize(
    "name", ["config.json", "golden.npz", "onnx-cpu/model.onnx", "onnx-cpu/manifest.json"]
)
@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_changed_byte(copied: Path, name: str, place: float) -> None:
    """A package with a changed byte is refused when opened, by the name of the file."""
    file = copied / name
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(PackageError, match=str(file)):
        open_package(copied)


@pytest.mark.parametrize("name", ["config.json", "golden.npz", "onnx-cpu/model.onnx"])
def test_missing_file(copied: Path, name: str) -> None:
    """A missing file is named."""
    (copied / name).unlink()
    with pytest.raises(PackageError, match=f"{name}: missing"):
        open_package(copied)


def test_no_package(tmp_path: Path) -> None:
    """A directory that is none, holds no engine, or lacks the asked kind, is refused saying so."""
    with pytest.raises(PackageError, match="no such directory"):
        open_package(tmp_path / "nowhere")
    with pytest.raises(PackageError, match="holds no engine"):
        open_package(tmp_path)


def test_absent_kind(package_dir: Path) -> None:
    """An engine kind that the package lacks is refused with the command that builds it."""
    with pytest.raises(PackageError, match="mtgr build --kind tensorrt"):
        open_package(package_dir).load_engine("tensorrt")


def test_kind_of_another_machine(with_tensorrt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that needs what is not installed here is refused by that name, and alone."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "engine_build.runtime.tensorrt", raising=False)
    package = open_package(with_tensorrt)
    with pytest.raises(PackageError, match="tensorrt: needs tensorrt, which is not installed"):
        package.load_engine("tensorrt")
    assert package.load_engine("onnx-cpu").kind == "onnx-cpu"


def test_lost_parity(copied: Path) -> None:
    """An engine whose scores are not PyTorch's is refused, its files being intact."""
    file = copied / "golden.npz"
    golden = load_golden(file, cases.SCHEMA)
    poisoned = replace(golden[1], scores={t: s + 3e-4 for t, s in golden[1].scores.items()})
    save_golden(file, [golden[0], poisoned, *golden[2:]])
    manifest_file = copied / "onnx-cpu" / "manifest.json"
    manifest = Manifest.read(manifest_file)
    files = {**manifest.files, "golden.npz": sha256_of(file)}
    manifest.model_copy(update={"files": files}).write(manifest_file)
    package = open_package(copied)
    with pytest.raises(ParityError, match=r"differ from PyTorch's by 0\.0003"):
        package.load_engine("onnx-cpu")


def test_manifest(package_dir: Path) -> None:
    """A manifest says what its engine was built from and by."""
    fields = json.loads((package_dir / "onnx-cpu" / "manifest.json").read_text())
    assert fields["kind"] == "onnx-cpu"
    assert fields["precision"] == "float32"
    assert set(fields["builders"]) == {"torch", "onnx", "onnxscript", "onnxruntime"}
    every = {path.relative_to(package_dir).as_posix() for path in package_dir.rglob("*.*")}
    assert set(fields["files"]) == every - {"onnx-cpu/manifest.json"}


def test_rebuild_keeps_other_engines(with_tensorrt: Path, checkpoint_dir: Path) -> None:
    """Building into a package of the same checkpoint keeps its other engines."""
    build_package(checkpoint_dir, with_tensorrt, ["onnx-cpu"], progress=lambda step: None)
    assert set(open_package(with_tensorrt).manifests) == {"onnx-cpu", "tensorrt"}


def test_rebuild_of_another_checkpoint(
    copied: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Building another checkpoint into a package replaces all of it."""
    source = tmp_path / "other"
    config = checkpoint.config.model_copy(update={"version": "v2"})
    save(source, replace(checkpoint, config=config))
    build_package(source, copied, ["onnx-cpu"], progress=lambda step: None)
    assert open_package(copied).config.version == "v2"


def test_never_overwrites_something_else(checkpoint_dir: Path, tmp_path: Path) -> None:
    """A target directory that holds anything but a package is left alone."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="not overwritten"):
        build_package(checkpoint_dir, tmp_path, ["onnx-cpu"], progress=lambda step: None)
    assert (tmp_path / "thesis.txt").exists()


def test_failed_build_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that fails leaves no directory behind."""
    source = tmp_path / "host"
    host = checkpoint.config.model.model_copy(update={"embedding_source": "host"})
    save(source, replace(checkpoint, config=checkpoint.config.model_copy(update={"model": host})))
    with pytest.raises(BuildError, match="embedding_source"):
        build_package(source, tmp_path / "package", ["cuda-graph"], progress=lambda step: None)
    assert [path.name for path in tmp_path.iterdir()] == ["host"]


def test_embeddings_on_the_host_score_alike(
    checkpoint: Checkpoint, package_dir: Path, tmp_path: Path
) -> None:
    """With tables beside the engine rather than in it, every score is the same."""
    host = checkpoint.config.model.model_copy(update={"embedding_source": "host"})
    config = checkpoint.config.model_copy(update={"model": host})
    model = MTGR(host, config.features, checkpoint.id_tables)
    model.load_state_dict(checkpoint.model.state_dict())
    save(tmp_path / "host", replace(checkpoint, config=config, model=model))
    build_package(tmp_path / "host", tmp_path / "package", ["onnx-cpu"], progress=lambda step: None)
    ours, theirs = open_package(tmp_path / "package"), open_package(package_dir)
    engines = [package.load_engine("onnx-cpu") for package in (ours, theirs)]
    for golden in theirs.golden:
        scores = [engine.run(golden.request).tasks for engine in engines]
        for task in scores[0]:
            np.testing.assert_allclose(scores[0][task], scores[1][task], rtol=0, atol=1e-6)
    assert (tmp_path / "package" / "onnx-cpu" / "values_item_id.npy").is_file()
    graphs = [(p.path / "onnx-cpu" / "model.onnx").stat().st_size for p in (ours, theirs)]
    assert graphs[0] < graphs[1]
    (tmp_path / "package" / "onnx-cpu" / "values_item_id.npy").write_bytes(b"other")
    with pytest.raises(PackageError, match="values_item_id"):
        open_package(tmp_path / "package")


BASE_INSTALL = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors"):
    sys.modules[name] = None
from engine_build.runtime.package import open_package
package = open_package(sys.argv[1])
scores = package.load_engine("onnx-cpu", threads=1).run(package.golden[0].request)
print(sorted(scores.tasks))
"""


def test_runs_without_torch_and_onnx(package_dir: Path) -> None:
    """A package is opened, loaded and run with neither torch nor onnx nor safetensors."""
    done = subprocess.run(
        [sys.executable, "-c", BASE_INSTALL, package_dir],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['ctcvr', 'ctr']\n", done.stderr
