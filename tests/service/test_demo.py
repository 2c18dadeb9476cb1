"""`make demo`: the shipped package is today's, and one command ranks with it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import onnx
import pytest

from engine_build.export import export_onnx, save_onnx
from engine_build.runtime.package import open_package
from engine_build.verify import verify
from model_def.checkpoint import load
from model_def.data.simulator import SCHEMA
from service.demo import PACKAGE
from tests.conftest import ROOT

OUT_OF_DATE = "the demo package is out of date: run 'make demo-package' and commit it"


def test_demo_package_is_small() -> None:
    """The package that ships in the repository is under 2 MB."""
    assert sum(file.stat().st_size for file in PACKAGE.rglob("*")) < 2_000_000


def test_demo_package_is_up_to_date(tmp_path: Path) -> None:
    """Schema, scores and exported graph are those of the code beside it."""
    package = open_package(PACKAGE)
    assert package.config.features == SCHEMA, OUT_OF_DATE
    assert all(verdict.passed for verdict in verify(PACKAGE, ["onnx-cpu"], requests=3, seed=1)), (
        OUT_OF_DATE
    )
    save_onnx(export_onnx(load(PACKAGE).model), tmp_path / "model.onnx")
    assert content(tmp_path) == content(PACKAGE / "onnx-cpu"), OUT_OF_DATE


def content(directory: Path) -> list[str]:
    """An exported model's operators in order and its weights; names are the exporter's mood."""
    model = onnx.load(directory / "model.onnx")
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return [node.op_type for node in nodes] + [str(part) for part in model.graph.initializer]


def test_demo_ranks_and_leaves_the_server_up(tmp_path: Path) -> None:
    """The demo ends with a table ranked by the model, and its server answers until stopped."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def demo(*arguments: str) -> str:
        command = [sys.executable, "-m", "mtgr", "demo", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        shown = demo("--port", str(port))
        assert "ranked by model" in shown
        assert "degraded" not in shown
        assert all(word in shown for word in ("CTR", "CTCVR", "backend", "total"))
        ready = httpx.get(f"http://127.0.0.1:{port}/health/ready")
        assert ready.status_code == httpx.codes.OK
    finally:
        assert "stopped" in demo("--stop")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health/ready")
