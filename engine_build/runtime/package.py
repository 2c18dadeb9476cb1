"""A model package: one model with its engines in a directory, and the checks before it serves.

    config.json           PackageConfig: version, model, features
    weights.safetensors   with id_tables.npz, the checkpoint that every engine was built from
    id_tables.npz
    golden.npz            packed requests and their PyTorch scores
    <kind>/               an engine: its files and manifest.json

A package whose files changed is refused when opened; an engine whose scores differ from
PyTorch's, when loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pydantic import ValidationError

from engine_build.runtime.engine import Engine
from engine_build.runtime.golden import Golden, load_golden, require_parity
from engine_build.runtime.manifest import MANIFEST, EngineKind, Manifest, PackageError, sha256_of
from model_def.config import PackageConfig

__all__ = ["ModelPackage", "PackageError", "open_package"]

CONFIG, GOLDEN = "config.json", "golden.npz"

LOADERS: dict[EngineKind, str] = {
    "onnx-cpu": "engine_build.runtime.onnx_cpu",
    "cuda-graph": "engine_build.runtime.cuda_graph",
    "tensorrt": "engine_build.runtime.tensorrt",
}
"""Module of each kind, imported when asked for; its `load(directory, package config, threads)`
returns the engine."""


@dataclass(frozen=True)
class ModelPackage:
    """An opened package: every file has the hash that its engines' manifests give."""

    path: Path
    config: PackageConfig
    golden: tuple[Golden, ...]
    manifests: Mapping[EngineKind, Manifest]

    def load_engine(self, kind: EngineKind = "onnx-cpu", threads: int = 1) -> Engine:
        """Load the engine of `kind`, on `threads` cores, and replay the golden requests on it.

        Raises PackageError if the package has none or this machine cannot run it, ParityError if
        its scores are off.
        """
        manifest = self.manifests.get(kind)
        if manifest is None or kind not in LOADERS:
            raise PackageError(
                f"{self.path}: has no {kind} engine to load here, only {sorted(self.manifests)}; "
                f"build it with 'mtgr build --kind {kind}'"
            )
        try:
            load: Callable[[Path, PackageConfig, int], Engine] = import_module(LOADERS[kind]).load
        except ModuleNotFoundError as error:
            raise PackageError(
                f"{self.path / kind}: needs {error.name}, which is not installed here"
            ) from error
        engine = load(self.path / kind, self.config, threads)
        require_parity(engine, self.golden, self.config.features, manifest.tolerance)
        return engine


def open_package(path: str | Path) -> ModelPackage:
    """Read a package's manifests and check every file that they name.

    Raises PackageError naming the file that is missing or changed, and what to do.
    """
    path = Path(path)
    if not path.is_dir():
        raise PackageError(f"{path}: no such directory; expected a package of 'mtgr build'")
    manifests: dict[EngineKind, Manifest] = {}
    for file in sorted(path.glob(f"*/{MANIFEST}")):
        manifest = Manifest.read(file)
        if manifest.kind != file.parent.name:
            raise PackageError(f"{file}: is of kind {manifest.kind}; rename or build it again")
        manifests[manifest.kind] = manifest
    if not manifests:
        raise PackageError(f"{path}: holds no engine; expected a package of 'mtgr build'")
    _check_hashes(path, manifests)
    file = path / CONFIG
    try:
        config = PackageConfig.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise PackageError(f"{file}: not a config of this version: {error}") from error
    return ModelPackage(path, config, load_golden(path / GOLDEN, config.features), manifests)


def _check_hashes(path: Path, manifests: Mapping[EngineKind, Manifest]) -> None:
    checked: dict[str, str] = {}
    for manifest in manifests.values():
        for name, expected in manifest.files.items():
            file = path / name
            if not file.is_file():
                raise PackageError(f"{file}: missing; build or copy the package again")
            if name not in checked:
                checked[name] = sha256_of(file)
            if checked[name] != expected:
                raise PackageError(
                    f"{file}: sha256 {checked[name][:12]} is not the manifest's {expected[:12]}; "
                    "the file was changed or belongs to another build; build or copy it again"
                )
