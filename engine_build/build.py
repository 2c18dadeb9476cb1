"""What a builder of an engine kind is told, and what it returns to the package it adds to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine_build.runtime.engine import EngineError
from engine_build.runtime.manifest import Limits, Precision
from model_def.checkpoint import Checkpoint
from model_def.schema import FeatureSchema

TOLERANCE: Mapping[Precision, float] = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 2e-2}
"""Largest score difference of an engine from PyTorch in float32. In 16 bits some four times what
PyTorch itself shows when it computes the presets in that precision."""


class BuildError(EngineError):
    """A checkpoint that cannot become an engine of this kind here; names why and the fix."""


@dataclass(frozen=True)
class BuildOptions:
    """Choices of the engines for GPUs; `onnx-cpu` has none."""

    precision: Precision = "bfloat16"
    batch_requests: int = 8
    """Requests in one run, at most."""
    max_candidates: int = 2000
    """Of one request."""
    plugin_library: Path | None = None
    """Our TensorRT plugins, as plugins/README.md builds them."""
    timing_cache: Path | None = None
    """TensorRT's, read and written, so that a later build of the same layers takes seconds."""
    traffic: Path | None = None
    """Sizes of real batches, to choose the buckets of `cuda-graph` by."""

    def limits(self, schema: FeatureSchema, requests: int) -> Limits:
        """The largest batch of `requests` requests."""
        return Limits(
            requests=requests,
            lifelong=requests * schema.lifelong_cap,
            realtime=requests * schema.realtime_cap,
            candidates=requests * self.max_candidates,
        )


DEFAULTS = BuildOptions()


@dataclass(frozen=True)
class Built:
    """An engine whose files are written; see `Manifest` for the fields."""

    precision: Precision
    tolerance: float
    limits: Limits | None
    builders: Mapping[str, str]


Builder = Callable[[Checkpoint, Path, BuildOptions], Built]
"""Writes an engine's files into an empty directory."""
