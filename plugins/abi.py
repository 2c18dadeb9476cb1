"""The types of the C ABI (`include/mtgr_ops.h`) in ctypes; a test compares them with the header."""

import ctypes

ABI_VERSION = 6

INT, LONG, FLOAT, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Rows(ctypes.Structure):
    """`mtgr_rows`: a [rows, heads, head_dim] view, strides in elements."""

    _fields_ = [("data", POINTER), ("row_stride", LONG), ("head_stride", LONG)]


class AttentionArgs(ctypes.Structure):
    """`mtgr_attention_args`."""

    _fields_ = [
        *((name, INT) for name in ("dtype", "head_dim", "heads", "kv_heads", "batch")),
        *((name, INT) for name in ("static_rows", "rt_rows", "candidate_rows")),
        ("first_query_segment", INT),
        *((name, FLOAT) for name in ("alpha", "inv_n")),
        *((name, Rows) for name in ("q", "static_k", "static_v", "recent_k", "recent_v")),
        *((name, POINTER) for name in ("out", "static_offsets", "rt_offsets")),
        *((name, POINTER) for name in ("candidate_offsets", "rt_visible", "candidate_visible")),
    ]


class AttentionMemory(ctypes.Structure):
    """`mtgr_attention_memory`: bytes."""

    _fields_ = [("partials", ctypes.c_size_t), ("counters", ctypes.c_size_t)]


class NormArgs(ctypes.Structure):
    """`mtgr_norm_args`."""

    _fields_ = [
        *((name, INT) for name in ("dtype", "parameter_dtype", "rows", "dim", "groups")),
        ("eps", FLOAT),
        *((name, POINTER) for name in ("x", "gate")),
        *((name, LONG) for name in ("x_stride", "gate_stride")),
        *((name, POINTER) for name in ("group", "weight", "bias", "out")),
    ]


class LinearArgs(ctypes.Structure):
    """`mtgr_linear_args`."""

    _fields_ = [
        *((name, INT) for name in ("rows", "columns", "depth", "out_dtype")),
        *((name, POINTER) for name in ("x", "weight", "bias", "residual", "out_rows", "out")),
        *((name, LONG) for name in ("x_stride", "residual_stride", "out_stride")),
    ]


class Norm(ctypes.Structure):
    """`mtgr_norm`."""

    _fields_ = [("weight", POINTER), ("bias", POINTER), ("eps", FLOAT)]


class LayerTailArgs(ctypes.Structure):
    """`mtgr_layer_tail_args`."""

    _fields_ = [
        *((name, INT) for name in ("dtype", "rows", "dim")),
        *((name, POINTER) for name in ("attended", "gate", "residual")),
        *((name, LONG) for name in ("attended_stride", "gate_stride", "residual_stride")),
        *((name, POINTER) for name in ("group", "weight", "bias")),
        *((name, Norm) for name in ("gated_norm", "next_norm")),
        *((name, POINTER) for name in ("out", "next")),
    ]


class Source(ctypes.Structure):
    """`mtgr_source`: one array of a batch."""

    _fields_ = [("data", POINTER), ("dtype", INT), ("width", INT), ("of_request", INT)]


class Table(ctypes.Structure):
    """`mtgr_table`: vectors by id or category."""

    _fields_ = [
        *((name, POINTER) for name in ("keys", "rows", "values")),
        *((name, INT) for name in ("log_capacity", "max_probe", "count", "width")),
    ]


class Number(ctypes.Structure):
    """`mtgr_number`: the encoding of one value."""

    _fields_ = [("kind", INT), ("column", INT), ("shift", FLOAT), ("scale", FLOAT)]


class Vector(ctypes.Structure):
    """`mtgr_vector`: eight columns of a segment's features."""

    _fields_ = [(name, INT) for name in ("source", "table", "column", "first", "token")]


SOURCES = 6


class Features(ctypes.Structure):
    """`mtgr_features`: one segment."""

    _fields_ = [
        *((name, INT) for name in ("rows", "tokens", "vectors", "batch")),
        *((name, POINTER) for name in ("vector", "numbers", "tables", "offsets")),
        ("sources", Source * SOURCES),
        ("out", POINTER),
    ]


class Frame(ctypes.Structure):
    """`mtgr_frame`: where each token stands."""

    _fields_ = [
        *((name, INT) for name in ("batch", "profile_tokens")),
        ("rows", INT * 3),
        ("groups", INT * 4),
        ("visible_dtype", INT),
        *((name, POINTER) for name in ("lifelong_offsets", "rt_visible", "candidate_visible")),
        *((name, POINTER) for name in ("static_offsets", "static_rows", "group")),
        *((name, POINTER) for name in ("rt_visible_out", "candidate_visible_out")),
    ]


class ScoresArgs(ctypes.Structure):
    """`mtgr_scores_args`."""

    _fields_ = [
        *((name, INT) for name in ("rows", "tasks", "width")),
        *((name, POINTER) for name in ("hidden", "weight", "bias", "out")),
    ]


class PackedArray(ctypes.Structure):
    """`mtgr_packed_array`."""

    _fields_ = [("rows", INT), ("content", INT), ("row_bytes", LONG), ("place", LONG)]


class Packed(ctypes.Structure):
    """`mtgr_packed`."""

    _fields_ = [("data", POINTER), ("bytes", LONG)]


SEGMENTS = ("request", "lifelong", "realtime", "candidate")
"""`mtgr_segment`."""

CONTENTS = ("values", "rt_visible", "candidate_visible", "context_candidates", "offsets")
"""`mtgr_content`."""
