"""Structured PyTorch implementations of the operators of `model_def.ops`: right, and fairly quick.

They run where no kernel is registered, and give the gradients everywhere. Arguments are as the
public functions document and check them.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

STATIC, REALTIME, CANDIDATE = 0, 1, 2
"""Segments, as `first_query_segment` counts them."""


class _Padding:
    """Maps one segment's ragged rows to [B, L, ...] and back; the rest of each row is zero.

    A zero key adds nothing (silu(0) = 0), so padded keys need no mask.
    """

    def __init__(self, offsets: Tensor, start: int):
        lengths = offsets.diff()
        self.width = int(lengths.max()) if len(lengths) else 0
        column = torch.arange(self.width, device=offsets.device)
        self.filled = column < lengths[:, None]
        self.source = (start + offsets[:-1, None] + column)[self.filled]

    def pad(self, rows: Tensor, first_row: int = 0) -> Tensor:
        padded = rows.new_zeros(*self.filled.shape, *rows.shape[1:])
        padded[self.filled] = rows[self.source - first_row]
        return padded.transpose(1, 2)  # [B, H, L, D]


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    static_offsets: Tensor,
    rt_offsets: Tensor,
    candidate_offsets: Tensor,
    rt_visible: Tensor,
    candidate_visible: Tensor,
    alpha: float,
    inv_n: float,
    first_query_segment: int = STATIC,
) -> Tensor:
    """Attention block by block of segments; nothing of size candidates x candidates is made."""
    rt_start = k.shape[0] - len(rt_visible) - len(candidate_visible)
    starts = (0, rt_start, rt_start + len(rt_visible))
    first_row = starts[first_query_segment]
    static, realtime, candidate = (
        _Padding(offsets, start)
        for offsets, start in zip(
            (static_offsets, rt_offsets, candidate_offsets), starts, strict=True
        )
    )
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    static_k, static_v, rt_k, rt_v = (p.pad(t) for p in (static, realtime) for t in (k, v))
    accurate = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape)

    def mix(rows: _Padding, visible: Tensor | None) -> None:
        """Output rows of one segment; `visible` [rows] or None for static rows."""
        if not len(rows.source):
            return
        own = rows.source - first_row
        queries = rows.pad(q, first_row)
        mixed = silu(alpha * queries @ static_k.mT) @ static_v
        if visible is not None and realtime.width:
            limit = rows.filled.new_zeros(rows.filled.shape, dtype=torch.int32)
            limit[rows.filled] = visible
            hidden = torch.arange(realtime.width, device=q.device) >= limit[:, None, :, None]
            weights = silu(alpha * queries @ rt_k.mT).masked_fill(hidden, 0.0)
            mixed = mixed + weights @ rt_v
        result = mixed.transpose(1, 2)[rows.filled]
        if visible is not None:
            weight = silu(alpha * (q[own] * k[rows.source]).sum(-1, keepdim=True))
            result = result + weight * v[rows.source]
        out[own] = (result.to(accurate) * inv_n).to(out.dtype)

    if first_query_segment == STATIC:
        mix(static, None)
    if first_query_segment <= REALTIME:
        mix(realtime, rt_visible[realtime.source - starts[REALTIME]])
    mix(candidate, candidate_visible[candidate.source - starts[CANDIDATE]])
    return out


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
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    chosen = group.long()
    return centred * scale * weight[chosen].to(x.dtype) + bias[chosen].to(x.dtype)


def _accurate(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
