"""The end of a layer in one launch: gated norm, output product, residual, the next layer's norm.

Of few rows, or more than run at once, the separate launches of `fused.py` and the norms are faster:
`fits` tells. All inputs but `attended` are read while the launch before still runs.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from plugins import abi
from plugins.loader import DTYPES, Library

WIDTHS = (512, 768)
FEWEST_ROWS, MOST_ROWS = 1000, 1920
"""By the table in layer_tail/README.md; 30 clusters of 64 rows run at once."""


@dataclass(frozen=True)
class Norm:
    """weight and bias [groups, d] of an affine layer norm, in the type of what it norms."""

    weight: Tensor
    bias: Tensor
    eps: float

    def args(self, d: int, like: Tensor) -> abi.Norm:
        """As C takes it; raises ValueError where the parameters do not fit `like`."""
        for name, tensor in (("weight", self.weight), ("bias", self.bias)):
            if tensor.dtype != like.dtype or tensor.shape[1] != d or not tensor.is_contiguous():
                got = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"norm {name}: expected {like.dtype} [groups, {d}], got {got}")
        return abi.Norm(self.weight.data_ptr(), self.bias.data_ptr(), self.eps)


def fits(rows: int, width: int) -> bool:
    """Whether one launch is faster than three for so many rows of this width."""
    return width in WIDTHS and FEWEST_ROWS <= rows <= MOST_ROWS


def layer_tail(
    library: Library,
    attended: Tensor,
    gate: Tensor,
    residual: Tensor,
    group: Tensor,
    gated_norm: Norm,
    weight: Tensor,
    bias: Tensor,
    next_norm: Norm | None,
) -> tuple[Tensor, Tensor]:
    """gated_norm(attended * gate) weight^T + bias + residual, and next_norm of that, if given.

    attended, gate, residual [rows, d], rows may be strided; group int32 [rows]; weight [d, d]; all
    fp16 or bf16 but bias [d], which is float32. Without `next_norm` the second result is the first.
    Raises ValueError naming what does not fit.
    """
    rows, d = attended.shape
    for name, tensor in (("attended", attended), ("gate", gate), ("residual", residual)):
        if tensor.shape != (rows, d) or tensor.dtype != attended.dtype or tensor.stride(1) != 1:
            got = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{name}: expected {attended.dtype} [{rows}, {d}], got {got}")
    if weight.shape != (d, d) or weight.dtype != attended.dtype or not weight.is_contiguous():
        raise ValueError(f"weight: expected {attended.dtype} [{d}, {d}], got {list(weight.shape)}")
    if bias.shape != (d,) or bias.dtype != torch.float32:
        raise ValueError(f"bias: expected torch.float32 [{d}], got {bias.dtype}")
    if group.shape != (rows,) or group.dtype != torch.int32 or not group.is_contiguous():
        raise ValueError(f"group: expected torch.int32 [{rows}], got {group.dtype}")
    out = attended.new_empty(rows, d)
    normed = None if next_norm is None else attended.new_empty(rows, d)
    args = abi.LayerTailArgs(
        DTYPES.get(attended.dtype, -1),
        rows,
        d,
        *(t.data_ptr() for t in (attended, gate, residual)),
        *(t.stride(0) for t in (attended, gate, residual)),
        *(t.data_ptr() for t in (group, weight, bias)),
        gated_norm.args(d, attended),
        abi.Norm() if next_norm is None else next_norm.args(d, attended),
        out.data_ptr(),
        None if normed is None else normed.data_ptr(),
    )
    library.launch("mtgr_layer_tail", attended, ctypes.byref(args))
    return out, out if normed is None else normed
