"""`manifest.json` of an engine: what it was built from and by, and the hash of every file.

The manifest carries a hash of itself, so a package with any changed byte is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from engine_build.runtime.engine import EngineError
from model_def.schema import Frozen

EngineKind = Literal["onnx-cpu", "cuda-graph", "tensorrt"]
Precision = Literal["float32", "float16", "bfloat16"]

MANIFEST = "manifest.json"


class PackageError(EngineError):
    """A package that is incomplete, changed, or not what it says; names the file and the fix."""


class Limits(Frozen):
    """The largest batch an engine takes, in requests and tokens over all of them."""

    requests: int = Field(ge=1)
    lifelong: int = Field(ge=0)
    realtime: int = Field(ge=0)
    candidates: int = Field(ge=1)


class Manifest(Frozen):
    """One engine of a package."""

    kind: EngineKind
    checkpoint_sha256: str = Field(description="of the checkpoint that the engine was built from")
    precision: Precision
    tolerance: float = Field(gt=0, description="largest score difference from PyTorch in float32")
    limits: Limits | None = Field(default=None, description="None: any batch that memory holds")
    builders: Mapping[str, str] = Field(description="versions of what built the engine")
    files: Mapping[str, str] = Field(description="sha256 by path in the package")

    def write(self, path: Path) -> None:
        """Save with the manifest's own hash."""
        path.write_text(_text(self))

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Load; raises PackageError when absent, malformed or changed by a byte."""
        try:
            text = path.read_text()
            fields = json.loads(text)
            fields.pop("sha256", None)
            manifest = cls.model_validate(fields)
        except (OSError, ValueError, AttributeError, ValidationError) as error:
            raise PackageError(f"{path}: not a manifest; build the package again") from error
        if text != _text(manifest):
            raise PackageError(f"{path}: was changed after it was built; build the package again")
        return manifest


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(manifest: Manifest) -> str:
    fields = manifest.model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return json.dumps({**fields, "sha256": digest}, indent=1) + "\n"
