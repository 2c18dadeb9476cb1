"""Writes a package's engine into a Triton model repository, and the command that serves it.

    <repository>/<schema>-<version>-<kind>/
        config.pbtxt
        warmup/                tensorrt: golden requests, run before the model is ready
        1/                     the package's files of this engine, and
            model.py           for the Python backend, or
            model.plan         for the TensorRT backend

Each version of a package is a model of its own name, loaded by explicit control: old and new are
up side by side while the gateway switches, and which of them an alias means is the gateway's.

Triton's Python backend runs in the environment of the first `python3` on the server's PATH, which
needs this project's base install; the TensorRT backend needs nothing of ours but the plugins.
"""

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from engine_build.runtime.manifest import MANIFEST, EngineKind
from engine_build.runtime.package import ModelPackage, open_package
from engine_build.runtime.tensors import request_tensors, served_name
from engine_build.triton.model_config import (
    Backend,
    RepositoryError,
    ServingOptions,
    as_text,
    model_config,
    warm_up_file,
)

MODEL_PY = '''\
"""Generated: an MTGR engine behind Triton's Python backend."""

import os
import sys

# Triton's interpreter does not read PYTHONPATH by itself.
sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)

from engine_build.triton.python_model import TritonPythonModel  # noqa: E402, F401
'''


BACKENDS: dict[EngineKind, Backend] = {"tensorrt": "tensorrt"}
"""Triton's own backend of an engine kind; the others run in the Python backend."""


def add_model(repository: Path, package: Path, kind: EngineKind, options: ServingOptions) -> str:
    """Add the engine, whole or not at all, and return its model name.

    Raises PackageError for a damaged package, RepositoryError for one that cannot be served so.
    """
    opened = open_package(package)
    manifest = opened.manifests.get(kind)
    if manifest is None:
        raise RepositoryError(
            f"{package}: has no {kind} engine, only {sorted(opened.manifests)}; "
            f"build it with 'mtgr build --kind {kind}'"
        )
    name = served_name(opened.config, kind)
    if Path(name).name != name:
        raise RepositoryError(f"version {opened.config.version!r}: cannot be a folder's name")
    target = repository / name
    if target.exists():
        raise RepositoryError(f"{target}: exists; a new engine needs a new version")
    config = model_config(
        opened.config, manifest, opened.golden, options, BACKENDS.get(kind, "python")
    )
    partial = repository / f".{name}.partial-{os.getpid()}"
    try:
        _write(partial, opened, kind, as_text(config))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return name


def _write(target: Path, package: ModelPackage, kind: EngineKind, config: str) -> None:
    version = target / "1"
    for name in (*package.manifests[kind].files, f"{kind}/{MANIFEST}"):
        (version / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.path / name, version / name)
    if kind == "tensorrt":
        (version / kind / PLAN).rename(version / PLAN)
        write_warm_up(target, package)
    else:
        (version / "model.py").write_text(MODEL_PY)
    (target / "config.pbtxt").write_text(config)


def write_warm_up(model: Path, package: ModelPackage) -> None:
    """The golden requests as the files that the configuration's warm-up names."""
    folder = model / "warmup"
    folder.mkdir()
    for number, golden in enumerate(package.golden):
        for spec in request_tensors(package.config.features):
            values = golden.request.arrays[spec.name]
            (folder / warm_up_file(number, spec)).write_bytes(values.tobytes())


PLAN = "model.plan"
"""The TensorRT engine's file, in the package and where Triton looks for it."""


SERVER_FLAGS = (
    # Models are loaded when a gateway asks for them.
    "--model-control-mode=explicit",
    # A model that cannot be loaded must not take down those that serve.
    "--exit-on-error=false",
    # A gateway's pings during a load of minutes are no attack.
    "--grpc-http2-max-ping-strikes=0",
)
"""Of every server, also in the image of the Dockerfile."""


def launch_command(
    repository: Path,
    models: Sequence[str],
    *,
    grpc_port: int = 8001,
    http_port: int = 8000,
    plugin_library: Path | None = None,
    server: str = "tritonserver",
) -> str:
    """The shell command that serves `models`; each name must be in the repository.

    `plugin_library` holds the plugins of `tensorrt` engines, which cannot be read without it.
    Raises RepositoryError for a model or library that is not there.
    """
    for model in models:
        if not (repository / model / "config.pbtxt").is_file():
            raise RepositoryError(f"{repository / model}: no such model; add it first")
    arguments = [
        server,
        f"--model-repository={repository}",
        *SERVER_FLAGS,
        *(f"--load-model={model}" for model in models),
        f"--grpc-port={grpc_port}",
        f"--http-port={http_port}",
    ]
    if any(model.endswith("-tensorrt") for model in models):
        library = existing_plugins(plugin_library)
        arguments.append(f"--backend-config=tensorrt,plugins={library}")
    return shlex.join(arguments)


def existing_plugins(library: Path | None) -> Path:
    """Where the plugins of `tensorrt` engines are; raises RepositoryError."""
    if library is None or not library.is_file():
        raise RepositoryError(
            f"plugin library {library}: not found, and a tensorrt engine cannot be read without "
            "its plugins; build it (plugins/README.md) and pass --plugin-library"
        )
    return library.resolve()
