"""PyTorch implementations of the operators of `model_def.ops`, but for attention's.

They run where no kernel is registered, and give the gradients everywhere. Arguments are as the
public functions document and check them.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding, layer_norm


def group_layer_norm(x: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """GroupLN(x), statistics in fp32."""
    return _normalize(_accurate(x), group, weight, bias, eps).to(x.dtype)


def gated_group_layer_norm(
    x: Tensor, gate: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """GroupLN(x * gate), the product and its statistics in fp32."""
    return _normalize(_accurate(x) * _accurate(gate), group, weight, bias, eps).to(x.dtype)


def id_lookup(ids: Tensor, keys: Tensor, rows: Tensor, max_probe: int) -> Tensor:
    """Linear probing, all ids at once, in wrapping int64 arithmetic."""
    bits = (keys.shape[0] - 1).bit_length()
    mixed = (ids ^ ((ids >> 32) & 0xFFFFFFFF)) * HASH_MULTIPLIER
    slot = (mixed >> (64 - bits)) & (keys.shape[0] - 1) if bits else torch.zeros_like(ids)
    found = torch.zeros_like(ids, dtype=torch.int32)
    for probe in range(max_probe):
        at = (slot + probe) & (keys.shape[0] - 1)
        found = torch.where((keys[at] == ids) & (found == 0), rows[at], found)
    return found


HASH_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 / golden ratio as a signed int64 (Knuth's multiplicative hashing)."""


def _normalize(x: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    # embedding, not indexing: its gradient sums over rows without a scatter.
    scale, shift = embedding(group, weight).to(x.dtype), embedding(group, bias).to(x.dtype)
    return torch.addcmul(shift, layer_norm(x, x.shape[-1:], eps=eps), scale)


def _accurate(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
