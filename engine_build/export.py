"""PyTorch module -> ONNX model of standard operators and `mtgr` nodes: one definition for both.

The graph's inputs are the schema's named 1-D arrays with free lengths, except
`context_candidates`: serving has one context row a request, so the graph finds each candidate's
in `candidate_offsets`. With `embedding_source` "host", `<segment>_vectors` [rows, n * width] take
the place of ids and categories. The outputs are one probability float32 [T_c] a task, named as
the task.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from engine_build.onnx_functions import OPSET_VERSION, function_protos
from engine_build.requests import random_batch
from engine_build.runtime.tensors import engine_inputs
from engine_build.serving import Serving
from engine_build.translation import TRANSLATIONS
from model_def.model import MTGR
from model_def.schema import ArraySpec

MAX_TABLE_ELEMENTS = 2**31
"""TensorRT's volume of one tensor; a larger embedding table belongs to the host."""

MAX_FILE_BYTES = 2**31 - 2**20
"""What one protobuf file may hold, less the graph; larger weights go to a file beside it."""


def export_onnx(model: MTGR) -> ir.Model:
    """The float32 model as ONNX; raises ValueError for a table too large for an engine."""
    on_host = model.config.embedding_source == "host"
    for name, parameter in (model.layers if on_host else model).named_parameters():
        if parameter.numel() >= MAX_TABLE_ELEMENTS:
            raise ValueError(
                f"{name}: {parameter.numel()} elements; an engine takes fewer than 2^31 a table. "
                "Use embedding_source 'host', or a smaller embedding_dim"
            )
    specs = engine_inputs(model.schema)
    example = random_batch(model.schema, np.random.default_rng(0), [(4, 3, 5)] * 3)
    arrays = {spec.name: torch.from_numpy(example.arrays[spec.name]) for spec in specs}
    lengths = _lengths(specs)
    with torch.no_grad():
        if on_host:
            arrays = {name: tensor.detach() for name, tensor in model.embeddings(arrays).items()}
        shapes = {name: {0: lengths[name]} for name in arrays}
        program = torch.export.export(Serving(model).eval(), (arrays,), dynamic_shapes=(shapes,))
    with _quiet_exporter():
        exported = torch.onnx.export(
            program,
            input_names=list(arrays),
            output_names=list(model.config.tasks),
            opset_version=OPSET_VERSION,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert exported is not None  # it is None only for the exporter of old
    graph: ir.Model = exported.model
    ClearMetadataAndDocStringPass()(graph)  # stack traces, with the builder's own paths
    for proto in function_protos():
        function = ir.serde.deserialize_function(proto)
        graph.functions[function.identifier()] = function
    return graph


def save_onnx(graph: ir.Model, path: Path) -> None:
    """Write the file, with its weights in `<name>.data` beside it if one file cannot hold them."""
    tensors = (value.const_value for value in graph.graph.initializers.values())
    weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    external = f"{path.name}.data" if weights > MAX_FILE_BYTES else None
    ir.save(graph, path, external_data=external)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what the exporter says of itself: an absent torchvision, a deprecated name."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _lengths(specs: tuple[ArraySpec, ...]) -> dict[str, Any]:
    """The symbolic length of each array, a multiple of its segment's rows.

    The tracer wants three rows at least, since it would fix a length of 0 or 1; nothing in the
    graph depends on that.
    """
    rows = {n: torch.export.Dim(n, min=3) for n in ("lifelong", "realtime", "candidate")}
    requests = torch.export.Dim("requests", min=3)
    rows |= {"profile": requests, "context": requests, "offset": requests + 1}
    # torch.export takes 1 * x for no symbol.
    lengths = {s.name: s.width * rows[s.rows] if s.width > 1 else rows[s.rows] for s in specs}
    return lengths | {f"{segment}_vectors": length for segment, length in rows.items()}
