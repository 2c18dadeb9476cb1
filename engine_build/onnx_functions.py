"""The `mtgr` operators as ONNX functions whose bodies are standard ONNX.

The bodies are what makes an exported file run in ONNX Runtime anywhere; for TensorRT they are
stripped and its parser finds our plugins by the same node names. The contract of each operator is
`model_def.ops`; what differs here is only that attention and the gated norm take the projection
`uvqk [T, 4, H, D]` whole, since plugin inputs are dense. ONNX Script reads the functions below as
a language of its own: Python never runs them.
"""
# mypy: ignore-errors
# (the values of a graph have no Python types)

from onnx import FunctionProto, TensorProto
from onnxscript import script
from onnxscript.onnx_opset import opset18 as op
from onnxscript.values import Opset

from model_def.structured import HASH_MULTIPLIER

DOMAIN = "mtgr"
OPSET_VERSION = 18
"""Of the standard operators, in the bodies and in the graphs that use them."""

PLUGIN_ATTRIBUTES = {"plugin_version": "1", "plugin_namespace": "mtgr"}
"""On every node: how TensorRT's parser selects a plugin. The bodies ignore them."""

mtgr = Opset(DOMAIN, 1)


@script(mtgr, default_opset=op)
def silu(x):
    return x * op.Sigmoid(x)


@script(mtgr, default_opset=op)
def attention_weights(q, k):
    """silu(q k^T) [..., n, m] of scaled q [..., n, D] and k [..., m, D]."""
    return silu(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])))


@script(mtgr, default_opset=op)
def rows(x, start, count):
    """x[:, :, start : start + count]; start and count are int64 [1]."""
    return op.Slice(x, start, start + count, op.Constant(value_ints=[2]))


@script(mtgr, default_opset=op)
def entries(x, start, count):
    """x[start : start + count]; start and count are int64 [1]."""
    return op.Slice(x, start, start + count, op.Constant(value_ints=[0]))


@script(mtgr, default_opset=op)
def segment_of(parts, count):
    """Join a sequence of requests' rows, then append zero rows up to `count` int64 [1]."""
    joined = op.ConcatFromSequence(parts, axis=2)
    missing = count - op.Shape(joined, start=2, end=3)
    shape = op.Concat(op.Shape(joined, end=2), missing, op.Shape(joined, start=3), axis=0)
    zero = op.CastLike(op.Constant(value_float=0.0), joined)
    return op.Concat(joined, op.Expand(zero, shape), axis=2)


@script(mtgr, default_opset=op)
def hstu_attention(
    uq,
    vk,
    static_offsets,
    rt_offsets,
    candidate_offsets,
    rt_visible,
    candidate_visible,
    alpha: float,
    inv_n: float,
    first_query_segment: int,
    plugin_version: str,
    plugin_namespace: str,
):
    """`model_def.ops.hstu_attention`: a Loop over requests with slices per segment.

    uq: [T_q, 4, H, D], the projection (u, v, q, k) whole, or [T_q, 2, H, D], (u, q).
    vk: [T, 4, H_kv, D] likewise, or [T, 2, H_kv, D], (v, k). Returns [T_q, H, D].
    """
    q = op.Gather(uq, op.Squeeze(op.Shape(uq, start=1, end=2)) / 2, axis=1)
    v = op.Gather(vk, op.Squeeze(op.Shape(vk, start=1, end=2)) / 2 - 1, axis=1)
    k = op.Gather(vk, op.Squeeze(op.Shape(vk, start=1, end=2)) - 1, axis=1)

    # Heads first, those that share a key head together: q [H_kv, G, T_q, D], k, v [H_kv, 1, T, D].
    kv_heads = op.Shape(k, start=1, end=2)
    group = op.Shape(q, start=1, end=2) / kv_heads
    head_dim = op.Shape(q, start=2, end=3)
    grouped = op.Concat(op.Constant(value_ints=[0]), kv_heads, group, head_dim, axis=0)
    out_shape = op.Shape(q)
    q = op.Transpose(op.Reshape(q, grouped), perm=[1, 2, 0, 3])
    q = q * op.CastLike(op.Constant(value_float=alpha), q)
    k = op.Unsqueeze(op.Transpose(k, perm=[1, 0, 2]), op.Constant(value_ints=[1]))
    v = op.Unsqueeze(op.Transpose(v, perm=[1, 0, 2]), op.Constant(value_ints=[1]))

    # Where each segment starts among the keys, and among the queries, which may lack segments.
    rt_rows, candidate_rows = op.Shape(rt_visible), op.Shape(candidate_visible)
    rt_keys = op.Shape(k, start=2, end=3) - rt_rows - candidate_rows
    candidate_keys = rt_keys + rt_rows
    first = op.Unsqueeze(op.Constant(value_int=first_query_segment), op.Constant(value_ints=[0]))
    static_queried = op.Cast(first == 0, to=TensorProto.INT64)
    rt_queried = op.Cast(first <= 1, to=TensorProto.INT64)
    rt_queries = static_queried * rt_keys
    candidate_queries = rt_queries + rt_queried * rt_rows

    nothing = rows(q, op.Constant(value_ints=[0]), op.Constant(value_ints=[0]))
    static_parts = op.SequenceConstruct(nothing)
    rt_parts = op.SequenceConstruct(nothing)
    candidate_parts = op.SequenceConstruct(nothing)
    static_bounds = op.Cast(static_offsets, to=TensorProto.INT64)
    rt_bounds = op.Cast(rt_offsets, to=TensorProto.INT64)
    candidate_bounds = op.Cast(candidate_offsets, to=TensorProto.INT64)
    axis = op.Constant(value_ints=[0])
    last = op.Constant(value_ints=[-1])

    for request in range(op.Squeeze(op.Shape(static_offsets)) - 1):
        at = op.Unsqueeze(request, axis)
        static_start = op.Gather(static_bounds, at)
        static_count = op.Gather(static_bounds, at + 1) - static_start
        rt_start = op.Gather(rt_bounds, at)
        rt_count = op.Gather(rt_bounds, at + 1) - rt_start
        candidate_start = op.Gather(candidate_bounds, at)
        candidate_count = op.Gather(candidate_bounds, at + 1) - candidate_start
        static_k = rows(k, static_start, static_count)
        static_v = rows(v, static_start, static_count)
        rt_k = rows(k, rt_keys + rt_start, rt_count)
        rt_v = rows(v, rt_keys + rt_start, rt_count)

        static_q = rows(q, static_start, static_count * static_queried)
        static_out = op.MatMul(attention_weights(static_q, static_k), static_v)
        static_parts = op.SequenceInsert(static_parts, static_out)

        # Real-time and candidate rows follow one rule: all static, a visible prefix, themselves.
        queried = rt_count * rt_queried
        recent_q = op.Concat(
            rows(q, rt_queries + rt_start, queried),
            rows(q, candidate_queries + candidate_start, candidate_count),
            axis=2,
        )
        visible = op.Concat(
            entries(rt_visible, rt_start, queried),
            entries(candidate_visible, candidate_start, candidate_count),
            axis=0,
        )
        own_k = op.Concat(
            rows(rt_k, axis, queried),
            rows(k, candidate_keys + candidate_start, candidate_count),
            axis=2,
        )
        own_v = op.Concat(
            rows(rt_v, axis, queried),
            rows(v, candidate_keys + candidate_start, candidate_count),
            axis=2,
        )
        position = op.Range(0, op.Cast(op.Squeeze(rt_count), to=TensorProto.INT32), 1)
        rt_weights = attention_weights(recent_q, rt_k)
        rt_weights = op.Where(
            position < op.Unsqueeze(visible, last),
            rt_weights,
            op.CastLike(op.Constant(value_float=0.0), q),
        )
        own_weight = silu(op.ReduceSum(recent_q * own_k, last, keepdims=1))
        recent_out = (
            op.MatMul(attention_weights(recent_q, static_k), static_v)
            + op.MatMul(rt_weights, rt_v)
            + own_weight * own_v
        )
        rt_parts = op.SequenceInsert(rt_parts, rows(recent_out, axis, queried))
        candidate_parts = op.SequenceInsert(
            candidate_parts, rows(recent_out, queried, candidate_count)
        )

    out = op.Concat(
        segment_of(static_parts, rt_queries),
        segment_of(rt_parts, rt_queried * rt_rows),
        segment_of(candidate_parts, candidate_rows),
        axis=2,
    )
    scaled = op.Cast(out, to=TensorProto.FLOAT) * op.Constant(value_float=inv_n)
    return op.Reshape(op.Transpose(op.CastLike(scaled, out), perm=[2, 0, 1, 3]), out_shape)


@script(mtgr, default_opset=op)
def normalize(z, group, weight, bias, eps: float):
    """GroupLN of fp32 z [T, d]: statistics a token, one affine [G, d] a token group."""
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(weight, start=1))
    unit = op.LayerNormalization(z, ones, axis=1, epsilon=eps)
    scale = op.Cast(op.Gather(weight, group), to=TensorProto.FLOAT)
    return unit * scale + op.Cast(op.Gather(bias, group), to=TensorProto.FLOAT)


@script(mtgr, default_opset=op)
def group_layer_norm(
    x, group, weight, bias, eps: float, plugin_version: str, plugin_namespace: str
):
    """`model_def.ops.group_layer_norm`."""
    z = op.Cast(x, to=TensorProto.FLOAT)
    return op.CastLike(normalize(z, group, weight, bias, eps=eps), x)


@script(mtgr, default_opset=op)
def gated_group_layer_norm(
    x, uq, group, weight, bias, eps: float, plugin_version: str, plugin_namespace: str
):
    """`model_def.ops.gated_group_layer_norm`, the gate being uq[:, 0] of uq [T_q, 4 or 2, H, D]."""
    gate = op.Reshape(op.Gather(uq, 0, axis=1), op.Shape(x))
    z = op.Cast(x, to=TensorProto.FLOAT) * op.Cast(gate, to=TensorProto.FLOAT)
    return op.CastLike(normalize(z, group, weight, bias, eps=eps), x)


@script(mtgr, default_opset=op)
def id_lookup(ids, keys, rows, max_probe: int, plugin_version: str, plugin_namespace: str):
    """`model_def.ops.id_lookup`, all probes of all ids at once: a key is in one slot at most."""
    capacity = op.Squeeze(op.Shape(keys))
    bits = op.Cast(
        op.Round(op.Log(op.Cast(capacity, to=TensorProto.FLOAT)) / 0.6931471805599453),
        to=TensorProto.UINT64,
    )
    raw = op.Cast(ids, to=TensorProto.UINT64)
    folded = op.BitwiseXor(raw, op.BitShift(raw, 32, direction="RIGHT"))
    product = op.Cast(folded, to=TensorProto.INT64) * HASH_MULTIPLIER
    # In two steps: a shift by all 64 bits, which one slot would need, is undefined.
    high = op.BitShift(op.Cast(product, to=TensorProto.UINT64), 63 - bits, direction="RIGHT")
    slot = op.Cast(op.BitShift(high, 1, direction="RIGHT"), to=TensorProto.INT64)
    column = op.Constant(value_ints=[1])
    probe = op.Range(0, op.Constant(value_int=max_probe), 1)
    slots = op.Mod(op.Unsqueeze(slot, column) + probe, capacity)
    found = op.Gather(keys, slots) == op.Unsqueeze(ids, column)
    return op.ReduceMax(op.Where(found, op.Gather(rows, slots), 0), column, keepdims=0)


OPERATORS = (hstu_attention, group_layer_norm, gated_group_layer_norm, id_lookup)
"""The operators that TensorRT has plugins for; the other functions are parts of their bodies."""


def function_protos() -> list[FunctionProto]:
    """Every model-local function of the domain, for a model that uses any of the operators."""
    parts = (silu, attention_weights, rows, entries, segment_of, normalize)
    return [function.to_function_proto() for function in (*parts, *OPERATORS)]
