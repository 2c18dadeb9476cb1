"""The slow, obvious attention that every other implementation is tested and timed against."""

import torch
from torch import Tensor
from torch.nn.functional import silu


def dense_mask(
    static_offsets: Tensor,
    rt_offsets: Tensor,
    candidate_offsets: Tensor,
    rt_visible: Tensor,
    candidate_visible: Tensor,
    total: int,
) -> Tensor:
    """bool [T, T]: row i sees row j (paper Fig. 2c), written one sentence of the contract a line.

    Rows after a segment's last offset are padding: they see and are seen by nobody.
    """
    mask = torch.zeros(total, total, dtype=torch.bool)
    first_rt = total - len(rt_visible) - len(candidate_visible)
    first_candidate = first_rt + len(rt_visible)
    for b in range(len(static_offsets) - 1):
        static = slice(int(static_offsets[b]), int(static_offsets[b + 1]))
        mask[static, static] = True
        start = first_rt + int(rt_offsets[b])
        for i in range(int(rt_offsets[b]), int(rt_offsets[b + 1])):
            mask[first_rt + i, static] = True
            mask[first_rt + i, start : start + int(rt_visible[i])] = True
            mask[first_rt + i, first_rt + i] = True
        for i in range(int(candidate_offsets[b]), int(candidate_offsets[b + 1])):
            mask[first_candidate + i, static] = True
            mask[first_candidate + i, start : start + int(candidate_visible[i])] = True
            mask[first_candidate + i, first_candidate + i] = True
    return mask


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, alpha: float, inv_n: float
) -> Tensor:
    """silu(alpha q k^T) * inv_n (.) mask, times v, every pair computed (paper Eq. 5).

    q: [T_q, H, D], k, v: [T, H_kv, D], mask: [T_q, T]. Rows that see nobody are zero, and rows
    seen by nobody are not read.
    """
    seen = mask.any(0)
    repeat = q.shape[1] // k.shape[1]
    k, v = (t[seen].repeat_interleave(repeat, dim=1).transpose(0, 1) for t in (k, v))
    sees = mask.any(1)
    weights = silu(alpha * q[sees].transpose(0, 1) @ k.mT) * mask[sees][:, seen]
    out = q.new_zeros(q.shape)
    out[sees] = (weights @ v).transpose(0, 1) * inv_n
    return out
