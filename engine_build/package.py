"""Checkpoint -> model package: the checkpoint's files, golden requests, and verified engines."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from engine_build.build import DEFAULTS, Builder, BuildError, BuildOptions
from engine_build.requests import random_request
from engine_build.runtime.golden import Golden, save_golden
from engine_build.runtime.manifest import MANIFEST, EngineKind, Manifest, PackageError, sha256_of
from engine_build.runtime.package import CONFIG, GOLDEN, open_package
from model_def.batch import PackedBatch
from model_def.checkpoint import Checkpoint, load
from model_def.model import MTGR, to_tensors

CHECKPOINT_FILES = (CONFIG, "weights.safetensors", "id_tables.npz", "training.json")
"""Copied as they are: a package is a checkpoint too, to build further engines from."""

BUILDERS: dict[EngineKind, str] = {
    "onnx-cpu": "engine_build.onnx_cpu",
    "cuda-graph": "engine_build.cuda_graph",
    "tensorrt": "engine_build.tensorrt.builder",
}
"""Module of each kind, imported when asked for; its `build` is a `Builder`."""

GOLDEN_CANDIDATES = 100

Progress = Callable[[str], object]
"""Told of each step as it starts."""


def build_package(
    source: Path,
    target: Path,
    kinds: Sequence[EngineKind],
    options: BuildOptions = DEFAULTS,
    progress: Progress = print,
) -> None:
    """Build engines of `kinds` from checkpoint `source` into package `target`, whole or not at all.

    A package of the same checkpoint keeps its other engines; any other package is replaced. Raises
    CheckpointError, BuildError, or ParityError for an engine that PyTorch disagrees with.
    """
    progress("checkpoint")
    checkpoint = load(source)
    digest = checkpoint_sha256(source)
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        if _is_package_of(target, digest):
            shutil.copytree(target, partial)
        else:
            partial.mkdir(parents=True)
            for name in CHECKPOINT_FILES:
                shutil.copyfile(source / name, partial / name)
            progress("golden requests")
            save_golden(partial / GOLDEN, golden_requests(checkpoint))
        for kind in kinds:
            progress(kind)
            _build_engine(checkpoint, digest, kind, options, partial)
            progress(f"{kind} against PyTorch")
            open_package(partial).load_engine(kind)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def checkpoint_sha256(directory: Path) -> str:
    """One hash of what a checkpoint scores with: config, weights and id tables."""
    hashes = [sha256_of(directory / name) for name in CHECKPOINT_FILES[:3]]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def golden_requests(checkpoint: Checkpoint) -> tuple[Golden, ...]:
    """Random requests of this schema with their PyTorch scores: full and empty sequences, one
    candidate and many, known ids and unknown."""
    schema = checkpoint.config.features
    known = {name: table.ids for name, table in checkpoint.id_tables.items()}
    lifelong, realtime = schema.lifelong_cap, schema.realtime_cap
    sizes = [
        (lifelong, realtime, GOLDEN_CANDIDATES),
        (lifelong // 7, realtime // 3, 17),
        (0, min(realtime, 5), 3),
        (min(lifelong, 9), 0, 2),
        (0, 0, 1),
    ]
    rng = np.random.default_rng(0)
    requests = [random_request(schema, rng, *size, known) for size in sizes]
    return tuple(Golden(r, pytorch_scores(checkpoint.model, r)) for r in requests)


def pytorch_scores(model: MTGR, batch: PackedBatch) -> dict[str, np.ndarray]:
    """Probabilities by task, float32 [T_c]: what engines are held to."""
    tensors = to_tensors(batch)
    with torch.inference_mode():
        probabilities = torch.sigmoid(model.eval().whole(tensors)).numpy()
    return {task: probabilities[:, i].copy() for i, task in enumerate(model.config.tasks)}


def _is_package_of(target: Path, digest: str) -> bool:
    if not target.exists():
        return False
    try:
        manifests = open_package(target).manifests.values()
    except PackageError as error:
        if any(target.iterdir()) and not (target / GOLDEN).is_file():
            raise BuildError(f"{target}: exists and is no package; not overwritten") from error
        return False
    return all(manifest.checkpoint_sha256 == digest for manifest in manifests)


def _build_engine(
    checkpoint: Checkpoint, digest: str, kind: EngineKind, options: BuildOptions, package: Path
) -> None:
    directory = package / kind
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    if checkpoint.config.model.embedding_source == "host" and kind != "onnx-cpu":
        raise BuildError(
            f"{kind}: gathers embeddings itself; set embedding_source to 'engine', or build "
            "onnx-cpu"
        )
    build: Builder = import_module(BUILDERS[kind]).build
    built = build(checkpoint, directory, options)
    files = [package / name for name in (*CHECKPOINT_FILES, GOLDEN)] + sorted(directory.iterdir())
    manifest = Manifest(
        kind=kind,
        checkpoint_sha256=digest,
        precision=built.precision,
        tolerance=built.tolerance,
        limits=built.limits,
        builders=built.builders,
        files={file.relative_to(package).as_posix(): sha256_of(file) for file in files},
    )
    manifest.write(directory / MANIFEST)
