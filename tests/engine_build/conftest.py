"""One small checkpoint and its package, built once for all tests of this folder."""

from pathlib import Path

import pytest

from engine_build.package import build_package
from model_def.checkpoint import Checkpoint, save
from model_def.config import PackageConfig
from tests.model_def import cases


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """A model of random weights over the cases' schema."""
    model = cases.model()
    config = PackageConfig(version="v1", model=model.config, features=cases.SCHEMA)
    return Checkpoint(config, model, cases.id_tables(), {})


@pytest.fixture(scope="session")
def checkpoint_dir(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as `mtgr train` leaves it."""
    directory = tmp_path_factory.mktemp("checkpoint") / "v1"
    save(directory, checkpoint)
    return directory


@pytest.fixture(scope="session")
def package_dir(checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with its onnx-cpu engine. Tests that change it take a copy."""
    directory = tmp_path_factory.mktemp("package") / "v1"
    build_package(checkpoint_dir, directory, ["onnx-cpu"], progress=lambda step: None)
    return directory
