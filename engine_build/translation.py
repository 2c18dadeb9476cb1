"""How the torch custom operators become `mtgr` nodes.

The torch operators take views q, k, v, u of a projection; the nodes take it whole (plugin inputs
are dense), so a view is traced back to the projection and the column that it selects.
"""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import OnnxFunction
from onnxscript.values import Op

import model_def.ops  # noqa: F401  # registers torch.ops.mtgr
from engine_build import onnx_functions
from engine_build.onnx_functions import DOMAIN, PLUGIN_ATTRIBUTES, mtgr

Value = Any
"""A value of the ONNX graph being built."""


def _operator(function: OnnxFunction[..., Any]) -> Op:
    """The function's name and signature: the exporter would inline a body that it is shown."""
    proto, attributes = function.to_function_proto(), function.function_ir.attributes
    types = [f"T_{name}" for name in proto.input]
    schema = OpSchema(
        proto.name,
        DOMAIN,
        mtgr.version,
        inputs=[OpSchema.FormalParameter(n, t) for n, t in zip(proto.input, types, strict=True)],
        outputs=[OpSchema.FormalParameter("out", "T_out")],
        type_constraints=[(t, _TENSORS, "") for t in (*types, "T_out")],
        attributes=[
            OpSchema.Attribute(
                name, getattr(OpSchema.AttrType, attribute.type.name), "", required=True
            )
            for name, attribute in attributes.items()
        ],
    )
    return Op(mtgr, proto.name, schema)


_TENSORS = [f"tensor({kind})" for kind in ("float", "float16", "bfloat16", "int32", "int64")]
_HSTU_ATTENTION = _operator(onnx_functions.hstu_attention)
_GROUP_LAYER_NORM = _operator(onnx_functions.group_layer_norm)
_GATED_GROUP_LAYER_NORM = _operator(onnx_functions.gated_group_layer_norm)
_ID_LOOKUP = _operator(onnx_functions.id_lookup)


def hstu_attention(
    q: Value,
    k: Value,
    v: Value,
    static_offsets: Value,
    rt_offsets: Value,
    candidate_offsets: Value,
    rt_visible: Value,
    candidate_visible: Value,
    alpha: float,
    inv_n: float,
    first_query_segment: int = 0,
) -> Value:
    vk = _projection(k, "k", lambda columns: columns - 1)
    if _projection(v, "v", lambda columns: columns // 2 - 1) is not vk:
        raise ValueError("hstu_attention: expected k and v to be columns of one projection")
    return _HSTU_ATTENTION(
        _projection(q, "q", lambda columns: columns // 2),
        vk,
        static_offsets,
        rt_offsets,
        candidate_offsets,
        rt_visible,
        candidate_visible,
        alpha=alpha,
        inv_n=inv_n,
        first_query_segment=first_query_segment,
        **PLUGIN_ATTRIBUTES,
    )


def group_layer_norm(x: Value, group: Value, weight: Value, bias: Value, eps: float) -> Value:
    return _GROUP_LAYER_NORM(x, group, weight, bias, eps=eps, **PLUGIN_ATTRIBUTES)


def gated_group_layer_norm(
    x: Value, gate: Value, group: Value, weight: Value, bias: Value, eps: float
) -> Value:
    uq = _projection(gate, "gate", lambda columns: 0)
    return _GATED_GROUP_LAYER_NORM(x, uq, group, weight, bias, eps=eps, **PLUGIN_ATTRIBUTES)


def id_lookup(ids: Value, keys: Value, rows: Value, max_probe: int) -> Value:
    return _ID_LOOKUP(ids, keys, rows, max_probe=max_probe, **PLUGIN_ATTRIBUTES)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.mtgr.hstu_attention.default: hstu_attention,
    torch.ops.mtgr.group_layer_norm.default: group_layer_norm,
    torch.ops.mtgr.gated_group_layer_norm.default: gated_group_layer_norm,
    torch.ops.mtgr.id_lookup.default: id_lookup,
}
"""For `torch.onnx.export(custom_translation_table=...)`."""


def _projection(view: Value, name: str, column: Callable[[int], int]) -> Value:
    """The projection [rows, columns, H, D] of which `view` is `x.select(1, column(columns))`."""
    node = view.producer()
    while node is not None and node.op_type == "Reshape":  # heads flattened
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1:
        raise ValueError(f"{name}: expected a column of the projection, x.select(1, column)")
    whole, index = node.inputs
    columns, selected = whole.shape[1], ir.convenience.get_const_tensor(index)
    if columns not in (2, 4) or selected is None or int(selected.numpy()) != column(columns):
        raise ValueError(f"{name}: expected column {column(4)} of 4 or {column(2)} of 2")
    return whole
