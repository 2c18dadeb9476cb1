"""Builds engine kind `onnx-cpu`: the exported graph with the operators' bodies, as one file."""

from importlib.metadata import version
from pathlib import Path

from engine_build.build import TOLERANCE, BuildError, BuildOptions, Built
from engine_build.export import export_onnx, save_onnx
from engine_build.runtime.onnx_cpu import MODEL
from model_def.checkpoint import Checkpoint


def build(checkpoint: Checkpoint, directory: Path, options: BuildOptions) -> Built:
    """Write the engine's file to `directory`; it has no choices."""
    if checkpoint.config.model.embedding_source != "engine":
        raise BuildError("onnx-cpu: gathers embeddings itself; set embedding_source to 'engine'")
    save_onnx(export_onnx(checkpoint.model), directory / MODEL)
    builders = {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    return Built("float32", TOLERANCE["float32"], None, builders)
