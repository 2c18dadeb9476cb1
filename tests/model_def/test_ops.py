"""Every sentence of the operators' contract, on the implementations that run without a GPU."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_def import ops
from model_def.id_table import IdTable
from model_def.reference import dense_mask, masked_attention
from tests.model_def.cases import AttentionCase, attention_case, paddings, request_lengths

ALPHA, INV_N = 0.3, 0.01


def attention(case: AttentionCase, first: int = 0) -> torch.Tensor:
    q = case.q[case.first_rows[first] :]
    return ops.hstu_attention(q, case.k, case.v, *case.layout, ALPHA, INV_N, first)


def reference(case: AttentionCase) -> torch.Tensor:
    mask = dense_mask(*case.layout, len(case.k))
    return masked_attention(case.q, case.k, case.v, mask, ALPHA, INV_N)


def attention_files(directory: Path) -> list[Path]:
    files = sorted(directory.glob("attention_*.npz"))
    assert len(files) >= 6
    return files


def test_golden_attention(golden_dir: Path) -> None:
    """float32 structured attention is within 1e-5 of the independent vectors, file by file."""
    names = ("q", "k", "v", "static_offsets", "rt_offsets", "candidate_offsets")
    for path in attention_files(golden_dir):
        vectors = np.load(path)
        tensors = [torch.from_numpy(vectors[n]) for n in (*names, "rt_visible")]
        tensors.append(torch.from_numpy(vectors["candidate_visible"]))
        out = ops.hstu_attention(*tensors, float(vectors["alpha"]), float(vectors["inv_n"]))
        expected = torch.from_numpy(vectors["out"])
        assert (out.double() - expected).norm() / expected.norm() < 1e-5, path.name


@given(request_lengths, paddings, st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.integers(0, 99))
def test_structured_equals_dense(
    lengths: list[tuple[int, int, int]],
    padding: tuple[int, int, int],
    heads: tuple[int, int],
    seed: int,
) -> None:
    """On any ragged batch, empty segments and NaN padding included, structured equals dense."""
    case = attention_case(lengths, padding, heads=heads[0], kv_heads=heads[1], seed=seed)
    torch.testing.assert_close(attention(case), reference(case), rtol=1e-9, atol=1e-9)


@given(request_lengths, paddings, st.sampled_from([1, 2]))
def test_first_query_segment_gives_the_same_rows(
    lengths: list[tuple[int, int, int]], padding: tuple[int, int, int], first: int
) -> None:
    """Asking for later segments only changes nothing but which rows are returned."""
    case = attention_case(lengths, padding)
    whole = attention(case)[case.first_rows[first] :]
    torch.testing.assert_close(attention(case, first), whole, rtol=0, atol=0)


@given(request_lengths, st.integers(0, 3))
def test_gradient_equals_the_dense_reference(
    lengths: list[tuple[int, int, int]], seed: int
) -> None:
    """Backward by recomputation gives the gradients that autograd finds through the reference."""
    case = attention_case(lengths, seed=seed)
    grads = []
    for function in (attention, reference):
        leaves = [t.clone().requires_grad_() for t in (case.q, case.k, case.v)]
        out = function(replace(case, q=leaves[0], k=leaves[1], v=leaves[2]))
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        loss = (out * weight).sum() + 0 * sum(leaf.sum() for leaf in leaves)
        grads.append(torch.autograd.grad(loss, leaves))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_nan_in_one_request_never_reaches_another() -> None:
    """Poison in a batch mate's rows leaves a request's output bits as they were."""
    case = attention_case([(5, 3, 4), (6, 2, 3)])
    clean = attention(case)
    poisoned = replace(case, **{n: getattr(case, n).clone() for n in ("q", "k", "v")})
    first = [slice(0, 5), slice(11, 14), slice(16, 20)]
    for rows in first:
        for tensor in (poisoned.q, poisoned.k, poisoned.v):
            tensor[rows] = torch.nan
    out = attention(poisoned)
    second = [slice(5, 11), slice(14, 16), slice(20, 23)]
    for rows in second:
        torch.testing.assert_close(out[rows], clean[rows], rtol=0, atol=0)
    assert all(out[rows].isnan().all() for rows in first)


def test_padding_rows_are_written_as_zero() -> None:
    """Rows after offsets[B] are zero in the output, though they hold NaN."""
    case = attention_case([(3, 2, 2)], (2, 1, 3))
    out = attention(case)
    padding = torch.cat((out[3:5], out[7:8], out[10:]))
    assert padding.count_nonzero() == 0
    assert not out.isnan().any()


def test_views_of_a_projection_are_read_in_place() -> None:
    """q, k and v may be strided views of uvqk [T, 4, H, D]."""
    case = attention_case([(4, 3, 5), (0, 0, 2)])
    uvqk = torch.stack((case.v, case.v, case.q, case.k), 1)
    viewed = replace(case, q=uvqk[:, 2], k=uvqk[:, 3], v=uvqk[:, 1])
    torch.testing.assert_close(attention(viewed), attention(case), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(10, 2)}, "q: expected [rows, heads, head_dim]"),
        ({"k": torch.zeros(14, 2, 8)}, "k: expected torch.float64"),
        ({"v": torch.zeros(14, 2, 4, dtype=torch.float64)}, "v: expected head_dim 8, got 4"),
        ({"v": torch.zeros(13, 2, 8, dtype=torch.float64)}, "v: expected k's shape"),
        ({"q": torch.zeros(13, 2, 8, dtype=torch.float64)}, "q: expected 14 rows, got 13"),
        ({"q": torch.zeros(14, 3, 8, dtype=torch.float64)}, "q: 3 heads are no multiple"),
        (
            {"q": torch.zeros(14, 8, 2, dtype=torch.float64).transpose(1, 2)},
            "q: expected a contiguous last dimension",
        ),
        ({"rt_visible": torch.zeros(3)}, "rt_visible: expected int32"),
        ({"static_offsets": torch.tensor([0, 5, 3], dtype=torch.int32)}, "static_offsets: expec"),
        ({"rt_offsets": torch.tensor([0, 2, 9], dtype=torch.int32)}, "at most 3 rows"),
        ({"candidate_offsets": torch.tensor([0, 4], dtype=torch.int32)}, "candidate_offsets: ex"),
        ({"candidate_offsets": torch.tensor([1, 2, 4], dtype=torch.int32)}, "ascending from 0"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, torch.Tensor], message: str) -> None:
    """A wrong dtype, shape, stride or offset raises an error that names the argument."""
    case = replace(attention_case([(4, 1, 3), (3, 2, 1)]), **change)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        ops.hstu_attention(case.q, case.k, case.v, *case.layout, ALPHA, INV_N)


@given(st.integers(0, 99), st.booleans())
def test_group_layer_norm_is_layer_norm_with_its_groups_affine(seed: int, gated: bool) -> None:
    """Each row is normalized alone and scaled by the affine of its own group."""
    torch.manual_seed(seed)
    x, gate = torch.randn(7, 16, dtype=torch.float64), torch.randn(7, 16, dtype=torch.float64)
    weight, bias = torch.randn(3, 16, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    group = torch.randint(3, (7,), dtype=torch.int32)
    product = x * gate if gated else x
    expected = torch.stack(
        [
            torch.nn.functional.layer_norm(row, (16,), weight[g], bias[g], 1e-6)
            for row, g in zip(product, group.tolist(), strict=True)
        ]
    )
    if gated:
        out = ops.gated_group_layer_norm(x, gate, group, weight, bias, 1e-6)
    else:
        out = ops.group_layer_norm(x, group, weight, bias, 1e-6)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("group", "weight", "message"),
    [
        (torch.zeros(5), torch.ones(2, 4), "group: expected int32 [5]"),
        (torch.zeros(4, dtype=torch.int32), torch.ones(2, 4), "group: expected int32 [5]"),
        (torch.zeros(5, dtype=torch.int32), torch.ones(2, 3), "weight: expected [groups, 4]"),
    ],
)
def test_norms_name_bad_arguments(group: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    """A norm refuses a wrong group or affine by the argument's name."""
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.group_layer_norm(torch.ones(5, 4), group, weight, weight, 1e-6)


ids = st.integers(-(1 << 63), (1 << 63) - 1)


@settings(max_examples=50)
@given(st.lists(ids, unique=True, max_size=300), st.lists(ids, max_size=20))
def test_id_lookup_finds_each_id_and_nothing_else(known: list[int], others: list[int]) -> None:
    """A frozen table maps id i to row i + 1 in order of first sight, and unknown ids to 0."""
    table = IdTable(known)
    frozen = table.freeze()
    queries = torch.tensor([*known, *others, 0, -1], dtype=torch.int64)
    rows = ops.id_lookup(
        queries, torch.from_numpy(frozen.keys), torch.from_numpy(frozen.rows), frozen.max_probe
    )
    expected = {value: row + 1 for row, value in enumerate(known)}
    assert rows.tolist() == [expected.get(value, 0) for value in queries.tolist()]
    assert table.ids.tolist() == known


def test_a_large_table_stays_within_its_probes() -> None:
    """200,000 random and 200,000 sequential ids freeze with every probe within the limit."""
    rng = np.random.default_rng(0)
    for values in (rng.integers(-(1 << 62), 1 << 62, 200_000), np.arange(200_000)):
        frozen = IdTable(values.tolist()).freeze()
        assert frozen.max_probe <= 16
        assert len(frozen.keys) <= 8 * len(values)
        tensors = torch.from_numpy(frozen.keys), torch.from_numpy(frozen.rows)
        rows = ops.id_lookup(torch.from_numpy(values), *tensors, frozen.max_probe)
        assert len(rows.unique()) == len(np.unique(values))
