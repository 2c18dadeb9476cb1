"""Packages made from one package without building again, and models made from packages."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from engine_build.runtime.golden import Golden, load_golden, save_golden
from engine_build.runtime.manifest import Manifest, sha256_of
from engine_build.runtime.onnx_cpu import load
from engine_build.triton.model_config import ServingOptions
from engine_build.triton.repository import add_model
from model_def.config import PackageConfig

BIAS = "model.heads.ctr.2.bias"


def add(repository: Path, package: Path, **options: Any) -> str:
    """Add the package's onnx-cpu engine; its model name."""
    return add_model(repository, package, "onnx-cpu", ServingOptions(**options))


def retrained(package: Path, target: Path, version: str) -> Path:
    """A package of the same schema whose CTR is higher for every candidate."""
    return _changed(package, target, version, new_scores=True)


def poisoned(package: Path, target: Path, version: str) -> Path:
    """A package whose engine does not give the scores of its golden requests."""
    return _changed(package, target, version, new_scores=False)


def _changed(package: Path, target: Path, version: str, *, new_scores: bool) -> Path:
    shutil.copytree(package, target)
    config_file, golden_file = target / "config.json", target / "golden.npz"
    config = PackageConfig.model_validate_json(config_file.read_bytes())
    config = config.model_copy(update={"version": version})
    config_file.write_text(config.model_dump_json())
    _raise_bias(target / "onnx-cpu" / "model.onnx")
    if new_scores:
        engine = load(target / "onnx-cpu", config, 1)
        golden = load_golden(golden_file, config.features)
        save_golden(golden_file, [Golden(g.request, engine.run(g.request).tasks) for g in golden])
    sign(target)
    return target


def sign(package: Path) -> None:
    """Write the manifest that fits the files as they are now."""
    path = package / "onnx-cpu" / "manifest.json"
    manifest = Manifest.read(path)
    files = {name: sha256_of(package / name) for name in manifest.files}
    manifest.model_copy(update={"files": files}).write(path)


def _raise_bias(file: Path) -> None:
    model = onnx.load(file)
    (bias,) = (i for i in model.graph.initializer if i.name == BIAS)
    raised = numpy_helper.to_array(bias) + np.float32(0.5)
    bias.CopyFrom(numpy_helper.from_array(raised, BIAS))
    onnx.save(model, file)
