"""Structured PyTorch implementations of the operators of `model_def.ops`: right, and fairly quick.

They run where no kernel is registered, and give the gradients everywhere. Arguments are as the
public functions document and check them.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding, silu

STATIC, REALTIME, CANDIDATE = 0, 1, 2
"""Segments, as `first_query_segment` counts them."""


class _Padding:
    """Maps one segment's ragged rows to [B, H, L, D] and back; the rest of each row is zero.

    A zero key adds nothing (silu(0) = 0), so padded keys need no mask. Rows move by index_copy
    and index_select, whose gradients are each other: both far cheaper than indexing.
    """

    def __init__(self, offsets: Tensor, start: int):
        lengths = offsets.diff()
        self.requests, self.start = len(lengths), start
        self.width = int(lengths.max()) if len(lengths) else 0
        self.count = int(offsets[-1])
        owner = torch.repeat_interleave(
            torch.arange(self.requests, device=offsets.device), lengths, output_size=self.count
        )
        row = torch.arange(self.count, device=offsets.device)
        self.slot = row - offsets.long()[owner] + owner * self.width

    def rows(self, rows: Tensor, first_row: int = 0) -> Tensor:
        """This segment's rows that are no padding, of rows that begin at `first_row`."""
        return rows.narrow(0, self.start - first_row, self.count)

    def pad(self, rows: Tensor) -> Tensor:
        """[count, ...] -> [B, L, ...]."""
        padded = rows.new_zeros(self.requests * self.width, *rows.shape[1:])
        filled = padded.index_copy(0, self.slot, rows)
        return filled.view(self.requests, self.width, *rows.shape[1:])

    def unpad(self, padded: Tensor) -> Tensor:
        """[B, L, ...] -> [count, ...]."""
        return padded.flatten(0, 1).index_select(0, self.slot)


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
    static_k, static_v, rt_k, rt_v = (
        p.pad(p.rows(t)).transpose(1, 2) for p in (static, realtime) for t in (k, v)
    )
    accurate = torch.promote_types(q.dtype, torch.float32)

    def mix(rows: _Padding, visible: Tensor | None) -> Tensor:
        """Output rows of one segment; `visible` [rows] or None for static rows."""
        own = rows.rows(q, first_row)
        queries = rows.pad(own).transpose(1, 2)
        mixed = silu(alpha * queries @ static_k.mT) @ static_v
        if visible is not None and realtime.width:
            limit = rows.pad(visible)
            hidden = torch.arange(realtime.width, device=q.device) >= limit[:, None, :, None]
            weights = silu(alpha * queries @ rt_k.mT).masked_fill(hidden, 0.0)
            mixed = mixed + weights @ rt_v
        result = rows.unpad(mixed.transpose(1, 2))
        if visible is not None:
            weight = silu(alpha * (own * rows.rows(k)).sum(-1, keepdim=True))
            result = result + weight * rows.rows(v)
        return (result.to(accurate) * inv_n).to(q.dtype)

    parts = []
    for segment, (rows, visible) in enumerate(
        ((static, None), (realtime, rt_visible), (candidate, candidate_visible))
    ):
        if segment < first_query_segment:
            continue
        shown = None if visible is None else visible[: rows.count]
        parts.append(mix(rows, shown) if rows.count else q[:0])
        end = starts[segment + 1] if segment < CANDIDATE else k.shape[0]
        parts.append(q.new_zeros(end - rows.start - rows.count, *q.shape[1:]))
    return torch.cat(parts)


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
    # embedding, not indexing: its gradient sums over rows without a scatter.
    return centred * scale * embedding(group, weight).to(x.dtype) + embedding(group, bias).to(
        x.dtype
    )


def _accurate(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
