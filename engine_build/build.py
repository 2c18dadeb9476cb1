"""What a builder of an engine kind returns to the package that the engine becomes part of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine_build.runtime.engine import EngineError
from engine_build.runtime.manifest import Limits
from model_def.checkpoint import Checkpoint


class BuildError(EngineError):
    """A checkpoint that cannot become an engine of this kind here; names why and the fix."""


@dataclass(frozen=True)
class Built:
    """An engine whose files are written; see `Manifest` for the fields."""

    precision: Literal["float32", "float16", "bfloat16"]
    tolerance: float
    limits: Limits | None
    builders: Mapping[str, str]


Builder = Callable[[Checkpoint, Path], Built]
"""Writes an engine's files into an empty directory."""
