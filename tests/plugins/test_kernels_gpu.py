"""Laws of the CUDA kernels behind the operators, on a GPU (pytest -m gpu)."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from model_def import ops
from model_def.id_table import IdTable
from model_def.reference import dense_mask
from plugins import loader
from plugins.fused import Product, products

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

LOG = logging.getLogger(__name__)
EDGES = (0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 200)


@dataclass(frozen=True)
class Case:
    """A ragged problem on the GPU; q, k, v are float64 of values that 16 bits hold exactly."""

    q: Tensor
    k: Tensor
    v: Tensor
    indices: tuple[Tensor, ...]
    mask: Tensor
    alpha: float
    inv_n: float

    def run(self, dtype: torch.dtype) -> Tensor:
        q, k, v = (t.to(dtype) for t in (self.q, self.k, self.v))
        return ops.hstu_attention(q, k, v, *self.indices, self.alpha, self.inv_n)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """What PyTorch computes in this dtype from the dense mask."""
        q, k, v = (torch.nan_to_num(t).to(dtype) for t in (self.q, self.k, self.v))
        repeat = q.shape[1] // k.shape[1]
        k, v = (t.repeat_interleave(repeat, 1).transpose(0, 1) for t in (k, v))
        weights = silu(self.alpha * (q.transpose(0, 1) @ k.mT)) * self.mask
        return (weights @ v).transpose(0, 1) * self.inv_n


def random_case(seed: int) -> tuple[Case, torch.dtype]:
    rng = np.random.default_rng(seed)
    dtype = (torch.float16, torch.bfloat16)[seed % 2]
    head_dim = (256, 32, 64, 128)[seed // 2 % 4]
    kv_heads = int(rng.integers(1, 3))
    heads = kv_heads * int(rng.integers(1, 3))
    requests = int(rng.integers(1, 5))
    lengths = np.where(
        rng.random((3, requests)) < 0.6,
        rng.choice(EDGES, (3, requests)),
        rng.integers(0, 250, (3, requests)),
    )
    padding = rng.integers(0, 40, 3) * rng.integers(0, 2, 3)
    offsets = [np.concatenate([[0], np.cumsum(row)]) for row in lengths]
    rt_index = np.concatenate([np.arange(n) for n in lengths[1]])
    seen_by_candidates = np.repeat(lengths[1], lengths[2])
    visible = [rng.integers(0, rt_index + 1), rng.integers(0, seen_by_candidates + 1)]
    visible = [np.concatenate([a, np.zeros(p)]) for a, p in zip(visible, padding[1:], strict=True)]
    indices = [torch.from_numpy(a.astype(np.int32)) for a in (*offsets, *visible)]
    total = int(lengths.sum() + padding.sum())
    generator = torch.Generator().manual_seed(seed)
    shapes = [(total, heads, head_dim), (total, kv_heads, head_dim), (total, kv_heads, head_dim)]
    values = [torch.randn(s, generator=generator).to(dtype).double() for s in shapes]
    start = 0
    for rows, extra in zip(lengths.sum(1), padding, strict=True):
        for tensor in values:
            tensor[start + rows : start + rows + extra] = float("nan")
        start += int(rows + extra)
    mask = dense_mask(*indices, total).cuda()
    q, k, v = (t.cuda() for t in values)
    on_gpu = tuple(i.cuda() for i in indices)
    return Case(q, k, v, on_gpu, mask, head_dim**-0.5, 1 / 1024), dtype


def relative(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right).norm() / right.norm().clamp_min(1e-30))


def test_error_is_at_most_twice_that_of_plain_pytorch() -> None:
    """Over 320 ragged cases with poisoned padding, both errors against float64."""
    worst = {torch.float16: 0.0, torch.bfloat16: 0.0}
    for seed in range(320):
        case, dtype = random_case(seed)
        exact = case.plain(torch.float64)
        if not exact.any():
            assert not case.run(dtype).any()
            continue
        ours, plain = relative(case.run(dtype), exact), relative(case.plain(dtype), exact)
        assert ours <= 2 * plain, (seed, dtype, ours, plain)
        worst[dtype] = max(worst[dtype], ours / plain)
    LOG.info("worst error over plain PyTorch's: %s", worst)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_golden_attention(golden_dir: Path, dtype: torch.dtype) -> None:
    """On the independent vectors too, the error is at most twice that of plain PyTorch."""
    names = ("static_offsets", "rt_offsets", "candidate_offsets", "rt_visible", "candidate_visible")
    files = sorted(golden_dir.glob("attention_*.npz"))
    assert len(files) >= 6
    for path in files:
        z = np.load(path)
        cpu = [torch.from_numpy(z[name]) for name in names]
        q, k, v = (torch.from_numpy(z[name]).cuda().double() for name in "qkv")
        case = Case(
            q, k, v, tuple(i.cuda() for i in cpu), dense_mask(*cpu, len(q)).cuda(),
            float(z["alpha"]), float(z["inv_n"]),
        )  # fmt: skip
        exact = torch.from_numpy(z["out"]).cuda()
        ours, plain = relative(case.run(dtype), exact), relative(case.plain(dtype), exact)
        assert ours <= 2 * plain, (path.name, ours, plain)
        LOG.info("%s %s: ours %.1e, plain %.1e", path.name, dtype, ours, plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("seed", range(8))
def test_a_bad_request_leaves_the_others_unchanged(seed: int, value: float) -> None:
    """NaN or infinity in all rows of one request changes no bit of another request's rows."""
    case, dtype = random_case(1000 + seed)
    before = case.run(dtype)
    sees = (case.mask.float() + torch.eye(len(case.mask), device="cuda")) > 0
    connected = torch.linalg.matrix_power((sees | sees.T).float(), 3)[0] > 0
    for tensor in (case.q, case.k, case.v):
        tensor[connected] = value
    after = case.run(dtype)
    assert torch.equal(before[~connected], after[~connected])


def test_views_are_read_in_place_and_graphs_replay() -> None:
    """Columns of uvqk [T, 4, H, D] give what copies give, eagerly and in a replayed graph."""
    case, dtype = random_case(8)
    copies = [torch.nan_to_num(t).to(dtype) for t in (case.q[:, : case.k.shape[1]], case.k, case.v)]
    uvqk = torch.stack([copies[0], copies[2], copies[0], copies[1]], 1)
    views = uvqk[:, 2], uvqk[:, 3], uvqk[:, 1]
    arguments = (*case.indices, case.alpha, case.inv_n)
    expected = ops.hstu_attention(*copies, *arguments)
    assert torch.equal(ops.hstu_attention(*views, *arguments), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.hstu_attention(*views, *arguments)
    for _ in range(3):
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, expected)


def test_first_query_segment_gives_the_same_rows() -> None:
    """Fewer query rows, the same result, up to rounding, for those that remain."""
    for seed in range(20):
        case, dtype = random_case(seed)
        q, k, v = (torch.nan_to_num(t).to(dtype) for t in (case.q, case.k, case.v))
        rt_rows, candidate_rows = len(case.indices[3]), len(case.indices[4])
        rest = (*case.indices, case.alpha, case.inv_n)
        whole = ops.hstu_attention(q, k, v, *rest)
        for segment, rows in ((1, rt_rows + candidate_rows), (2, candidate_rows)):
            part = ops.hstu_attention(q[len(q) - rows :], k, v, *rest, segment)
            # Parts of a tile differ, and what they exchange is rounded to 16 bits.
            torch.testing.assert_close(part, whole[len(q) - rows :], rtol=1e-2, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [8, 64, 512, 768, 1032, 8192])
@pytest.mark.parametrize("gated", [False, True])
def test_norms_equal_their_definition(dtype: torch.dtype, dim: int, gated: bool) -> None:
    """Group layer norm, of x or of x * gate, as float64 computes it, to the dtype's rounding."""
    torch.manual_seed(dim)
    x, wide = torch.randn(37, dim).to(dtype).cuda(), torch.randn(37, 4 * dim).to(dtype).cuda()
    group = torch.randint(0, 4, (37,), dtype=torch.int32).cuda()
    weight, bias = torch.randn(4, dim).cuda(), torch.randn(4, dim).cuda()
    gate = wide[:, :dim]
    z = x.double() * (gate.double() if gated else 1)
    exact = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    exact = exact * weight.double()[group.long()] + bias.double()[group.long()]
    ours = (
        ops.gated_group_layer_norm(x, gate, group, weight, bias, 1e-6)
        if gated
        else ops.group_layer_norm(x, group, weight, bias, 1e-6)
    )
    limit = {torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}[dtype]
    assert relative(ours, exact) < limit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "silu", "residual"])
def test_fused_products(kernels: loader.Library, dtype: torch.dtype, kind: str) -> None:
    """Two products in one launch, rows scattered, equal float64 up to one rounding, and touch
    nothing else."""
    torch.manual_seed(0)
    made, expected = [], []
    for rows, columns, depth in ((301, 784, 264), (70, 96, 768)):
        x, weight = torch.randn(rows, depth).to(dtype), (torch.randn(columns, depth) / 16).to(dtype)
        bias, residual = torch.randn(columns), torch.randn(rows, columns).to(dtype)
        to = torch.randperm(rows + 9, dtype=torch.int32)[:rows]
        y = x.double() @ weight.double().T + bias.double()
        y = silu(y) if kind == "silu" else y + residual.double() * (kind == "residual")
        out = torch.full((rows + 9, columns), 7.0, dtype=dtype)
        want = out.double().index_copy(0, to.long(), y)
        expected.append(want)
        on_gpu = [t.cuda() for t in (x, weight, bias, out)]
        more = residual.cuda() if kind == "residual" else None
        made.append(Product(*on_gpu, residual=more, out_rows=to.cuda()))
    products(kernels, *made, silu=kind == "silu")
    for product, want in zip(made, expected, strict=True):
        assert relative(product.out.cpu(), want) < (5e-4 if dtype == torch.float16 else 3e-3)
        untouched = (want == 7.0).all(1)
        assert untouched.sum() == 9
        assert (product.out.cpu()[untouched] == 7.0).all()


def test_products_name_what_does_not_fit(kernels: loader.Library) -> None:
    """A bias of another type, an odd width or a misaligned row is an error before any launch."""
    x, weight = torch.zeros(4, 16).half().cuda(), torch.zeros(16, 16).half().cuda()
    bias, out = torch.zeros(16).cuda(), torch.zeros(4, 16).half().cuda()
    for arguments, message in (
        ((x, weight, bias.half(), out), "bias: expected torch.float32"),
        ((x, weight[:8], bias[:8], out[:, :8]), "weight: .* multiples of 16"),
        ((x.float(), weight.float(), bias, out.float()), "dtype"),
        ((x, weight, bias, torch.zeros(4, 17).half().cuda()[:, 1:]), "out: expected an address"),
    ):
        with pytest.raises(ValueError, match=message):
            products(kernels, Product(*arguments))


def test_id_lookup_equals_the_cpu() -> None:
    """Known and unknown ids give the rows of the PyTorch implementation."""
    rng = np.random.default_rng(0)
    known = np.unique(rng.integers(-(2**63), 2**63 - 1, 5000))
    table = IdTable(known.tolist()).freeze()
    ids = np.concatenate([known, rng.integers(-(2**63), 2**63 - 1, 3000)])
    cpu = [torch.from_numpy(np.asarray(a)) for a in (ids, table.keys, table.rows)]
    expected = ops.id_lookup(*cpu, table.max_probe)
    assert expected.any()
    assert torch.equal(ops.id_lookup(*(t.cuda() for t in cpu), table.max_probe).cpu(), expected)


def test_what_the_kernels_do_not_support_is_named() -> None:
    """Wrong dtype, head dim or alignment is an error that names the argument."""
    none = torch.zeros(2, dtype=torch.int32).cuda()
    empty = none[:0]
    rest = (torch.tensor([0, 4], dtype=torch.int32).cuda(), none, none, empty, empty, 1.0, 1.0)
    good = torch.randn(4, 1, 64).half().cuda()
    wide = torch.randn(4, 1, 65).half().cuda()[..., 1:]
    for q, message in (
        (good.float(), "dtype"),
        (torch.randn(4, 1, 48).half().cuda(), "head_dim: 48"),
        (wide, "q: address and strides"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.hstu_attention(q, q, q, *rest)
