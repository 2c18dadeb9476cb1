"""One run of an engine, kept to be run again: `capture-*.npz`.

It holds all that the run read (the packed arrays of every request in the batch, in order), the
engine that ran it, and what it gave. Users are not named. Needs NumPy and pydantic only.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from engine_build.runtime.engine import EngineError
from engine_build.runtime.manifest import MANIFEST, EngineKind, Limits, sha256_of
from model_def.batch import PackedBatch, from_arrays
from model_def.schema import FeatureSchema, Frozen


class CaptureError(EngineError):
    """A file that is no capture, or a capture of another schema."""


class Origin(Frozen):
    """The engine that ran, and where."""

    package: str
    version: str
    engine: EngineKind
    manifest_sha256: str | None
    """Of the engine's manifest, which holds the hash of every file; None: no manifest was there."""
    backend: Literal["inprocess", "triton"]
    threads: int
    device: str

    @classmethod
    def of(
        cls,
        package: Path,
        version: str,
        engine: EngineKind,
        backend: Literal["inprocess", "triton"],
        threads: int,
    ) -> "Origin":
        """Of an engine loaded from `package`, whose manifest is read."""
        manifest = package / engine / MANIFEST
        return cls(
            package=str(package),
            version=version,
            engine=engine,
            manifest_sha256=sha256_of(manifest) if manifest.is_file() else None,
            backend=backend,
            threads=threads,
            device=device_of(engine) if backend == "inprocess" else "beyond Triton",
        )


class About(Frozen):
    """Why a request was kept, and what became of it."""

    request_id: str
    scene: str
    captured_ms: int
    why: str
    """`slow`, or the reason why its answer was degraded."""
    ranked_by: str
    stages_ms: dict[str, float]
    missing: dict[str, str]
    layout_hash: str
    origin: Origin
    position: int
    """Of the request among those of its batch."""
    requests: int
    bucket: Limits | None = None
    """The shape that the batch was padded to, where there is one."""
    format: Literal["mtgr-capture/1"] = "mtgr-capture/1"


@dataclass(frozen=True)
class Capture:
    """A captured request with its batch."""

    about: About
    requests: tuple[PackedBatch, ...]
    """Every request of the batch, in order."""
    tasks: Mapping[str, NDArray[np.float32]]
    """Probabilities [T_c] of the whole batch by task; empty where the engine gave none."""
    item_ids: NDArray[np.int64]
    """[K] of the request."""
    scores: NDArray[np.float64]
    """[K] what its items were ordered by; NaN where nothing was known."""

    @property
    def rows(self) -> slice:
        """The request's own candidates among those of the batch."""
        counts = [request.candidates for request in self.requests]
        start = sum(counts[: self.about.position])
        return slice(start, start + counts[self.about.position])


def write_capture(capture: Capture, path: Path) -> int:
    """Write the file whole or not at all; its size in bytes."""
    arrays: dict[str, Any] = {
        "about": np.frombuffer(capture.about.model_dump_json().encode(), np.uint8),
        "item_ids": capture.item_ids,
        "scores": capture.scores,
    }
    for number, request in enumerate(capture.requests):
        arrays |= {f"{number}/{name}": array for name, array in request.arrays.items()}
    arrays |= {f"score/{task}": values for task, values in capture.tasks.items()}
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def read_about(path: Path) -> About:
    """Why and by what a capture was made, before its schema is known; raises CaptureError."""
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            return About.model_validate_json(file["about"].tobytes())
    except (OSError, KeyError, ValueError, BadZipFile, ValidationError) as error:
        raise CaptureError(f"{path}: not a capture of this version: {error}") from error


def read_capture(path: Path, schema: FeatureSchema) -> Capture:
    """The capture; raises CaptureError where it is of another layout than `schema`'s."""
    about, ours = read_about(path), f"{schema.layout_hash:016x}"
    if about.layout_hash != ours:
        raise CaptureError(
            f"{path}: captured with layout {about.layout_hash}, the package has {ours}; "
            "replay it on a package of its own schema"
        )
    with path.open("rb") as raw, np.load(raw) as file:
        requests = tuple(
            from_arrays(schema, {spec.name: file[f"{i}/{spec.name}"] for spec in schema.arrays})
            for i in range(about.requests)
        )
        tasks = {n.removeprefix("score/"): file[n] for n in file.files if n.startswith("score/")}
        return Capture(about, requests, tasks, file["item_ids"], file["scores"])


def device_of(engine: EngineKind) -> str:
    """What an engine of a kind runs on in this process: the processor's name or the GPU's."""
    if engine != "onnx-cpu":
        from engine_build.runtime.cuda import device_name

        return device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
