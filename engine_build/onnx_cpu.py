"""Builds engine kind `onnx-cpu`: the exported graph with the operators' bodies, as one file.

With `embedding_source` "host" the tables lie beside it.
"""

from importlib.metadata import version
from pathlib import Path

from engine_build.build import TOLERANCE, BuildOptions, Built
from engine_build.export import export_onnx, save_onnx
from engine_build.runtime.host_embeddings import write_tables
from engine_build.runtime.onnx_cpu import MODEL
from model_def.checkpoint import Checkpoint


def build(checkpoint: Checkpoint, directory: Path, options: BuildOptions) -> Built:
    """Write the engine's files to `directory`; it has no choices."""
    save_onnx(export_onnx(checkpoint.model), directory / MODEL)
    if checkpoint.config.model.embedding_source == "host":
        values = checkpoint.model.embeddings.values
        write_tables(
            directory,
            {name: table.freeze() for name, table in checkpoint.id_tables.items()},
            {name: rows.detach().numpy() for name, rows in values.items()},
        )
    builders = {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    return Built("float32", TOLERANCE["float32"], None, builders)
