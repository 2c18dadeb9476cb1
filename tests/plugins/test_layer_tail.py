"""Laws of a layer's end in one launch, on a GPU of compute capability 9.0 (pytest -m gpu)."""

import pytest
import torch
from torch import Tensor

from plugins import loader
from plugins.tail import Norm, fits, layer_tail

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

GROUPS = 4


@pytest.fixture(autouse=True)
def _hopper() -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("NOT CHECKED: the kernel is for compute capability 9.0")


class Case:
    """Arguments of `layer_tail`; attended, gate and residual are columns of wider arrays."""

    def __init__(self, rows: int, d: int, dtype: torch.dtype):
        torch.manual_seed(rows + d)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape) * scale).to(dtype).cuda()

        wide = [normal(rows, d + 8)[:, :d] for _ in range(2)]
        self.attended, self.residual = wide
        self.gate = normal(rows, 4 * d)[:, d : 2 * d]
        self.group = torch.randint(0, GROUPS, (rows,), dtype=torch.int32).cuda()
        self.gated_norm = Norm(normal(GROUPS, d), normal(GROUPS, d), 1e-12)
        self.next_norm = Norm(normal(GROUPS, d), normal(GROUPS, d), 1e-6)
        self.weight, self.bias = normal(d, d, scale=d**-0.5), torch.randn(d).cuda()

    def run(self, kernels: loader.Library, *, last: bool = False) -> tuple[Tensor, Tensor]:
        inputs = (self.attended, self.gate, self.residual, self.group, self.gated_norm)
        after = None if last else self.next_norm
        return layer_tail(kernels, *inputs, self.weight, self.bias, after)

    def normed(self, z: Tensor, norm: Norm) -> Tensor:
        scaled = (z - z.mean(1, keepdim=True)) / (
            z.var(1, unbiased=False, keepdim=True) + norm.eps
        ).sqrt()
        group = self.group.long()
        return scaled * norm.weight.double()[group] + norm.bias.double()[group]

    def exact(self) -> tuple[Tensor, Tensor]:
        gated = self.normed(self.attended.double() * self.gate.double(), self.gated_norm)
        y = gated @ self.weight.double().T + self.bias.double() + self.residual.double()
        return y, self.normed(y, self.next_norm)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [512, 768])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 500, 1700, 3400])
def test_it_equals_its_definition(
    kernels: loader.Library, rows: int, d: int, dtype: torch.dtype
) -> None:
    """Whole and ragged tiles, one wave of them and more, equal float64 up to rounding."""
    case = Case(rows, d, dtype)
    limit = 1e-3 if dtype == torch.float16 else 4e-3
    for got, want in zip(case.run(kernels), case.exact(), strict=True):
        assert relative(got, want) < limit


def test_the_next_norm_changes_nothing_else(kernels: loader.Library) -> None:
    """Without it the output is the same, bit for bit, and is what comes in its place."""
    case = Case(1100, 768, torch.bfloat16)
    out, _ = case.run(kernels)
    for last in (True, False) * 20:
        again, second = case.run(kernels, last=last)
        assert torch.equal(again, out)
        assert not last or second is again


def test_rows_do_not_touch_each_other(kernels: loader.Library) -> None:
    """NaN and infinity in one row leave all others as they were."""
    case = Case(130, 512, torch.float16)
    before = case.run(kernels)
    case.attended[70, 3], case.residual[64, 5] = float("nan"), float("inf")
    others = [row for row in range(130) if row not in (64, 70)]
    for was, now in zip(before, case.run(kernels), strict=True):
        assert torch.equal(was[others], now[others])
        assert not torch.isfinite(now[[64, 70]]).all(1).any()


def test_what_does_not_fit_is_named(kernels: loader.Library) -> None:
    """A wrong width, type or shape is an error before any launch; no rows are fine."""
    narrow, case = Case(4, 256, torch.float16), Case(4, 512, torch.float16)
    with pytest.raises(ValueError, match="attended: 256 columns, expected 512 or 768"):
        narrow.run(kernels)
    case.bias = case.bias.half()
    with pytest.raises(ValueError, match=r"bias: expected torch\.float32 \[512\]"):
        case.run(kernels)
    case = Case(4, 512, torch.float16)
    case.gated_norm = Norm(case.weight[:2].float(), case.weight[2:4].float(), 1e-6)
    with pytest.raises(ValueError, match=r"norm weight: expected torch\.float16"):
        case.run(kernels)
    out, after = Case(0, 512, torch.float16).run(kernels)
    assert out.shape == after.shape == (0, 512)


def test_it_is_taken_where_it_is_faster() -> None:
    """Of one request's rows in widths that exist; not of few rows, nor of more than run at once."""
    assert [fits(rows, 768) for rows in (500, 1700, 1920, 1921)] == [False, True, True, False]
    assert not fits(1700, 1024)
