"""The ONNX file that TensorRT's parser reads, and the shapes of its optimization profiles.

Needs no TensorRT: what the parser will meet is decided, and tested, here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from engine_build.export import export_onnx
from engine_build.precision import in_precision
from engine_build.runtime.manifest import Limits
from engine_build.runtime.tensors import (
    OFFSET_ROWS,
    engine_inputs,
    offset_input_name,
    offset_source,
)
from model_def.model import MTGR
from model_def.schema import FeatureSchema


def tensorrt_graph(model: MTGR, precision: str) -> ir.Model:
    """The model of 16-bit weights with inputs as TensorRT and Triton's backend for it give them.

    The operators keep their bodies, so that the graph runs in ONNX Runtime too; `strip_bodies`
    makes it the parser's.
    """
    graph = export_onnx(in_precision(model, precision))
    for node in graph.graph:
        for output in node.outputs:
            if output.dtype == ir.DataType.UINT8:  # of an input that is widened below
                output.dtype = ir.DataType.INT32
    for value in [*graph.graph.inputs]:
        if value.dtype == ir.DataType.UINT8:
            _widen(graph.graph, value)
        if value.name in OFFSET_ROWS:
            _count_elements(graph.graph, value, model.schema)
    return graph


def strip_bodies(graph: ir.Model) -> ir.Model:
    """The nodes without bodies: a parser given a body would take it instead of our plugin."""
    stripped = graph.clone()
    stripped.functions.clear()
    return stripped


@dataclass(frozen=True)
class Shape:
    """Lengths of one 1-D input in an optimization profile."""

    smallest: int
    typical: int
    largest: int


def profile_shapes(schema: FeatureSchema, limits: Limits) -> Mapping[str, Shape]:
    """Lengths of each input for batches of up to `limits`.

    Tactics are timed at the largest batch: it is where time is short.
    """
    smallest = {"lifelong": 0, "realtime": 0, "candidate": 1, "profile": 1, "context": 1}
    largest = {
        "lifelong": limits.lifelong,
        "realtime": limits.realtime,
        "candidate": limits.candidates,
        "profile": limits.requests,
        "context": limits.requests,
    }
    shapes = {}
    for spec in engine_inputs(schema):
        if spec.rows == "offset":
            name = offset_input_name(schema, spec.name)
            shapes[name] = Shape(2, limits.requests + 1, limits.requests + 1)
        else:
            low, high = smallest[spec.rows] * spec.width, largest[spec.rows] * spec.width
            shapes[spec.name] = Shape(low, high, high)
    return shapes


def plugin_nodes(graph: ir.Model) -> Iterator[ir.Node]:
    """The nodes that TensorRT must find a plugin for."""
    return (node for node in graph.graph if node.domain == "mtgr")


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    """uint8 -> int32 by way of float32: TensorRT converts uint8 inputs to nothing else."""
    users = list(value.uses())
    as_float = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
    as_int = ir.node("Cast", as_float.outputs, {"to": int(ir.DataType.INT32)})
    _insert_first(graph, [as_float, as_int], ir.DataType.FLOAT, ir.DataType.INT32)
    _replace(users, as_int.outputs[0])


def _count_elements(graph: ir.Graph, offsets: ir.Value, schema: FeatureSchema) -> None:
    """Take an offsets input as element counts where a server can only count elements."""
    assert offsets.name is not None
    width = offset_source(schema, offsets.name).width
    if width == 1:
        return
    users = list(offsets.uses())
    by = ir.node("Constant", [], {"value_int": width})
    by_int32 = ir.node("Cast", by.outputs, {"to": int(ir.DataType.INT32)})
    divided = ir.node("Div", [offsets, by_int32.outputs[0]])
    _insert_first(
        graph, [by, by_int32, divided], ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT32
    )
    _replace(users, divided.outputs[0])
    offsets.name = offset_input_name(schema, offsets.name)


def _insert_first(graph: ir.Graph, nodes: list[ir.Node], *dtypes: ir.DataType) -> None:
    for node, dtype in zip(nodes, dtypes, strict=True):
        node.outputs[0].dtype = dtype
    graph.insert_before(graph[0], nodes)


def _replace(users: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, position in users:
        node.replace_input_with(position, value)
