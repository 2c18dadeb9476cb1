"""The types of the C ABI (`include/mtgr_ops.h`) in ctypes; a test compares them with the header."""

import ctypes

ABI_VERSION = 2

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
        ("silu_gate", INT),
        ("eps", FLOAT),
        *((name, POINTER) for name in ("x", "gate")),
        *((name, LONG) for name in ("x_stride", "gate_stride")),
        *((name, POINTER) for name in ("group", "weight", "bias", "out")),
    ]
