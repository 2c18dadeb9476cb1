"""The folders' directions, and what may be imported where: the tree is the diagram."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NUMPY_ONLY = {"schema", "config", "rows", "batch", "served"}
"""Modules of model_def that the gateway may import: NumPy and pydantic, no torch."""

DATA_TOO = {"cli.py", "demo.py", "loop.py", "simulated.py", "traffic.py"}
"""Modules of the service that may see training data: commands, and the simulator's callers."""

ALLOWED = {
    "model_def": {"model_def"},
    "plugins": {"plugins"},
    "engine_build": {"engine_build", "model_def", "plugins"},
    "service": {"service", "model_def", "engine_build"},
    "loadtest": {"loadtest"},
}


def imports(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, at any depth of nesting."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folders_import_in_their_direction(folder: str) -> None:
    """service -> model_def <- engine_build -> plugins, and nothing the other way."""
    for path in sources(folder):
        ours = {name.split(".")[0] for name in imports(path)} & set(ALLOWED)
        assert ours <= ALLOWED[folder], f"{path.relative_to(ROOT)} imports {ours}"


def test_service_sees_only_the_numpy_half_of_the_model() -> None:
    """The gateway imports the schema, the config and packing; its backends alone run engines."""
    for path in sources("service"):
        relative = path.relative_to(ROOT)
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "model_def" and len(parts) > 1:
                data = parts[1] == "data" and path.name in DATA_TOO
                assert parts[1] in NUMPY_ONLY or data, f"{relative} imports {name}"
            if parts[0] == "engine_build":
                assert "backends" in relative.parts, f"{relative} imports {name}"
                assert len(parts) == 1 or parts[1] == "runtime", f"{relative} imports {name}"


def test_rank_story_knows_no_web_or_store() -> None:
    """A request's story and its nouns have no FastAPI, Redis or Triton type in them."""
    story = [ROOT / "service" / name for name in ("rank.py", "ranking.py")]
    tops = {name.split(".")[0] for path in story for name in imports(path)}
    assert not tops & {"fastapi", "starlette", "redis", "tritonclient", "onnxruntime"}


BASE_INSTALL = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import {module}
"""


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("model_def.batch", ["torch", "onnxruntime", "redis", "fastapi", "pyarrow"]),
        ("model_def.data.simulator", ["torch", "onnxruntime", "redis", "fastapi", "pyarrow"]),
        ("engine_build.runtime.package", ["torch", "onnx", "onnxscript", "safetensors"]),
        ("service.cli", ["torch", "onnx", "onnxscript", "pyarrow", "safetensors"]),
        ("mtgr", ["torch", "onnx", "onnxscript", "pyarrow", "safetensors"]),
    ],
)
def test_base_install_is_enough(module: str, blocked: list[str]) -> None:
    """What serves imports with every optional dependency absent."""
    code = BASE_INSTALL.format(blocked=blocked, module=module)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
