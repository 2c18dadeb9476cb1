"""The operators' ONNX bodies, run by ONNX Runtime, against the contract's references."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from engine_build.onnx_functions import (
    DOMAIN,
    OPSET_VERSION,
    PLUGIN_ATTRIBUTES,
    function_protos,
)
from model_def import ops
from model_def.id_table import IdTable
from model_def.reference import dense_mask, masked_attention
from tests.model_def.cases import AttentionCase, attention_case, paddings, request_lengths

ALPHA, INV_N = 0.3, 0.01
LAYOUT = (
    "static_offsets",
    "rt_offsets",
    "candidate_offsets",
    "rt_visible",
    "candidate_visible",
)


@cache
def session(
    operator: str, inputs: Sequence[tuple[str, int, int]], **attributes: Any
) -> onnxruntime.InferenceSession:
    """A graph of one node; inputs are (name, element type, rank)."""
    given = [
        helper.make_tensor_value_info(name, kind, [None] * rank) for name, kind, rank in inputs
    ]
    out = helper.make_empty_tensor_value_info("out")
    names = [name for name, _, _ in inputs]
    node = helper.make_node(
        operator, names, ["out"], domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES
    )
    model = helper.make_model(
        helper.make_graph([node], operator, given, [out]),
        functions=function_protos(),
        opset_imports=[helper.make_opsetid("", OPSET_VERSION), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def attention(
    uq: np.ndarray, vk: np.ndarray, layout: Sequence[Any], alpha: float, inv_n: float, first: int
) -> np.ndarray:
    inputs = (
        ("uq", TensorProto.FLOAT, 4),
        ("vk", TensorProto.FLOAT, 4),
        *((name, TensorProto.INT32, 1) for name in LAYOUT),
    )
    run = session("hstu_attention", inputs, alpha=alpha, inv_n=inv_n, first_query_segment=first).run
    values = {"uq": uq, "vk": vk, **dict(zip(LAYOUT, layout, strict=True))}
    return run(None, {name: np.asarray(array) for name, array in values.items()})[0]


def projections(case: AttentionCase, first: int) -> tuple[np.ndarray, np.ndarray]:
    """(uq, vk): the projection whole where every row is queried, else in halves. u is NaN, for
    attention reads none of it."""
    q, k, v = (t.float().numpy() for t in (case.q[case.first_rows[first] :], case.k, case.v))
    u = np.full_like(q, np.nan)
    if first == 0 and q.shape == k.shape:
        uvqk = np.stack([u, v, q, k], axis=1)
        return uvqk, uvqk
    return np.stack([u, q], axis=1), np.stack([v, k], axis=1)


def test_golden_attention(golden_dir: Path) -> None:
    """ONNX attention is within 1e-5 of the independent vectors, file by file."""
    for path in sorted(golden_dir.glob("attention_*.npz")):
        z = np.load(path)
        uvqk = np.stack([np.full_like(z["q"], np.nan), z["v"], z["q"], z["k"]], axis=1)
        layout = [z[name].astype(np.int32) for name in LAYOUT]
        out = attention(uvqk, uvqk, layout, float(z["alpha"]), float(z["inv_n"]), 0)
        error = np.linalg.norm(out - z["out"]) / np.linalg.norm(z["out"])
        assert error < 1e-5, path.name


@settings(max_examples=60, deadline=None)
@given(
    request_lengths,
    paddings,
    st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_attention_equals_dense(
    lengths: list[tuple[int, int, int]],
    padding: tuple[int, int, int],
    heads: tuple[int, int],
    first: int,
    seed: int,
) -> None:
    """On any ragged batch, for any first query segment and grouping of heads, the ONNX body
    equals the dense reference, and NaN in padding rows reaches nobody."""
    case = attention_case(lengths, padding, heads=heads[0], kv_heads=heads[1], seed=seed)
    mask = dense_mask(*case.layout, len(case.k))
    expected = masked_attention(case.q, case.k, case.v, mask, ALPHA, INV_N)
    out = attention(*projections(case, first), case.layout, ALPHA, INV_N, first)
    np.testing.assert_allclose(out, expected[case.first_rows[first] :], rtol=0, atol=1e-5)


def test_nan_stays_in_its_request() -> None:
    """A NaN in one request of a batch never reaches another."""
    case = attention_case([(3, 2, 4), (5, 3, 2)], dtype=torch.float32)
    clean = attention(*projections(case, 0), case.layout, ALPHA, INV_N, 0)
    case.k[0], case.q[8], case.v[13] = torch.nan, torch.nan, torch.nan
    rows = np.r_[3:8, 10:13, 17:19]  # of the second request
    out = attention(*projections(case, 0), case.layout, ALPHA, INV_N, 0)
    assert np.isnan(np.delete(out, rows, axis=0)).any()
    np.testing.assert_array_equal(out[rows], clean[rows])


@pytest.mark.parametrize("gated", [False, True])
def test_norms_equal_pytorch(gated: bool) -> None:
    """The norms equal the torch operators, the gate being the first column of the projection."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 16), np.float32)
    uq = rng.standard_normal((30, 4, 2, 8), np.float32)
    group = rng.integers(0, 3, 30).astype(np.int32)
    weight, bias = rng.standard_normal((2, 3, 16), np.float32)
    arrays = {"x": x, "uq": uq, "group": group, "weight": weight, "bias": bias}
    if not gated:
        del arrays["uq"]
    inputs = tuple(
        (name, helper.np_dtype_to_tensor_dtype(a.dtype), a.ndim) for name, a in arrays.items()
    )
    tensors = [torch.from_numpy(a) for a in (group, weight, bias)]
    if gated:
        gate = torch.from_numpy(uq[:, 0].reshape(x.shape))
        expected = ops.gated_group_layer_norm(torch.from_numpy(x), gate, *tensors, 1e-12)
        out = session("gated_group_layer_norm", inputs, eps=1e-12).run(None, arrays)[0]
    else:
        expected = ops.group_layer_norm(torch.from_numpy(x), *tensors, 1e-6)
        out = session("group_layer_norm", inputs, eps=1e-6).run(None, arrays)[0]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=200), st.integers(0, 99))
def test_id_lookup_equals_pytorch(known: set[int], seed: int) -> None:
    """A known id finds its row and any other finds 0, whatever the table's size."""
    table = IdTable(sorted(known)).freeze()
    strangers = np.random.default_rng(seed).integers(-(2**63), 2**63, 50, dtype=np.int64)
    ids = np.concatenate([np.array(sorted(known), np.int64), strangers, [0, -1]])
    assert_lookup_equal(ids, table.keys, table.rows, table.max_probe)


def test_id_lookup_in_one_slot() -> None:
    """A table of one slot, whose hash has no bits, works too."""
    ids = np.array([5, 0, -7])
    assert_lookup_equal(ids, np.array([-7]), np.array([1], np.int32), 1)


def assert_lookup_equal(ids: np.ndarray, keys: np.ndarray, rows: np.ndarray, probes: int) -> None:
    inputs = (
        ("ids", TensorProto.INT64, 1),
        ("keys", TensorProto.INT64, 1),
        ("rows", TensorProto.INT32, 1),
    )
    run = session("id_lookup", inputs, max_probe=probes).run
    out = run(None, {"ids": ids, "keys": keys, "rows": rows})[0]
    expected = ops.id_lookup(*map(torch.from_numpy, (ids, keys, rows)), probes)
    np.testing.assert_array_equal(out, expected)


def test_bodies_are_standard_onnx() -> None:
    """Every body is of standard operators and of our own functions that are given with it."""
    given = {(function.domain, function.name) for function in function_protos()}
    for function in function_protos():
        onnx.checker.check_function(function)
        used = {(node.domain, node.op_type) for node in function.node}
        assert {pair for pair in used if pair[0]} <= given
