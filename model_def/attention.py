"""Structured PyTorch HSTU attention and its gradient, segment by segment; see `model_def.ops`.

Right on any device, and fairly quick: nothing of size candidates x candidates is made, and the
gradient recomputes the scores rather than keep them. Arguments are as `ops.hstu_attention`
documents and checks them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

STATIC, REALTIME, CANDIDATE = 0, 1, 2
"""Segments, as `first_query_segment` counts them."""


class _Segment:
    """One segment's rows [n, H, D] as [B * H, L, D] and back; the rest of each [L, D] is zero.

    A zero key adds nothing (silu(0) = 0), so padded keys need no mask.
    """

    def __init__(self, offsets: Tensor, start: int, rows: int, heads: int):
        first, lengths = offsets[:-1].long(), offsets.long().diff()
        self.start, self.rows, self.count = start, rows, int(offsets[-1])
        self.heads, self.batch = heads, len(lengths) * heads
        self.width = int(lengths.max()) if len(lengths) else 0
        head = torch.arange(heads, device=offsets.device)
        column = torch.arange(self.width, device=offsets.device)
        # For each place [B, H, L] the (row, head) that fills it; elsewhere the zero after the last.
        source = (first[:, None, None] + column) * heads + head[:, None]
        filled = column < lengths[:, None, None]
        self._source = torch.where(filled, source, self.count * heads).flatten()
        owner = torch.repeat_interleave(lengths, output_size=self.count)
        column = torch.arange(self.count, device=offsets.device) - first[owner]
        place = (owner[:, None] * heads + head) * self.width + column[:, None]
        self._place = place.flatten()

    def take(self, rows: Tensor, first_row: int = 0) -> Tensor:
        """This segment's rows that are no padding, of rows that begin at `first_row`."""
        return rows.narrow(0, self.start - first_row, self.count)

    def pad(self, rows: Tensor) -> Tensor:
        """[n, H, D] -> [B * H, L, D]."""
        flat = rows.reshape(-1, rows.shape[2])
        with_zero = torch.cat((flat, flat.new_zeros(1, rows.shape[2])))
        padded = with_zero.index_select(0, self._source)
        return padded.view(self.batch, self.width, rows.shape[2])

    def unpad(self, padded: Tensor) -> Tensor:
        """[B * H, L, D] -> [n, H, D]."""
        rows = padded.flatten(0, 1).index_select(0, self._place)
        return rows.view(self.count, self.heads, padded.shape[2])


class _Keys(NamedTuple):
    """Padded keys and values [B * H, L, D] of a segment that others may see."""

    k: Tensor
    v: Tensor


class _Problem:
    """The three segments of a call, and which keys each of them sees."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: list[Tensor], visible: list[Tensor]
    ):
        rows = [k.shape[0] - sum(map(len, visible)), *map(len, visible)]
        starts = [0, rows[0], rows[0] + rows[1]]
        self.segments = [
            _Segment(*each, q.shape[1]) for each in zip(offsets, starts, rows, strict=True)
        ]
        repeat = q.shape[1] // k.shape[1]
        self.k, self.v = (t if repeat == 1 else t.repeat_interleave(repeat, 1) for t in (k, v))
        self.keys = [
            _Keys(s.pad(s.take(self.k)), s.pad(s.take(self.v))) for s in self.segments[:CANDIDATE]
        ]
        self._visible = visible

    def seen_by(self, index: int) -> Iterator[tuple[int, _Keys, Tensor | None]]:
        """Segments whose keys the rows of segment `index` see, and where they see them not."""
        yield STATIC, self.keys[STATIC], None
        realtime, segment = self.segments[REALTIME], self.segments[index]
        if index == STATIC or not realtime.count:
            return
        visible = segment.take(self._visible[index - 1], segment.start)
        limit = segment.pad(visible[:, None, None].expand(-1, segment.heads, 1))
        column = torch.arange(realtime.width, device=limit.device)
        yield REALTIME, self.keys[REALTIME], column >= limit


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
    """inv_n * (silu(alpha q k^T) (.) mask) v, plus the self term of all but static rows."""
    offsets = [static_offsets, rt_offsets, candidate_offsets]
    problem = _Problem(q, k, v, offsets, [rt_visible, candidate_visible])
    first_row = problem.segments[first_query_segment].start
    accurate = torch.promote_types(q.dtype, torch.float32)
    parts = []
    for index in range(first_query_segment, CANDIDATE + 1):
        segment = problem.segments[index]
        own = segment.take(q, first_row)
        queries = segment.pad(own)
        mixed = torch.zeros_like(queries)
        for _, keys, hidden in problem.seen_by(index):
            weights = silu(_scores(queries, keys.k, alpha), inplace=True)
            mixed.baddbmm_(weights if hidden is None else weights.masked_fill_(hidden, 0), keys.v)
        out = segment.unpad(mixed)
        if index != STATIC:
            weight = silu(alpha * (own * segment.take(problem.k)).sum(-1, keepdim=True))
            out = out + weight * segment.take(problem.v)
        parts.append((out.to(accurate) * inv_n).to(q.dtype))
        parts.append(q.new_zeros(segment.rows - segment.count, *q.shape[1:]))
    return torch.cat(parts)


def hstu_attention_gradient(
    grad: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of the output."""
    offsets = [static_offsets, rt_offsets, candidate_offsets]
    problem = _Problem(q, k, v, offsets, [rt_visible, candidate_visible])
    first_row = problem.segments[first_query_segment].start
    grad = grad * inv_n
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(problem.k), torch.zeros_like(problem.v)
    key_grads = [_Keys(*map(torch.zeros_like, keys)) for keys in problem.keys]
    for index in range(first_query_segment, CANDIDATE + 1):
        segment = problem.segments[index]
        own, own_grad = segment.take(q, first_row), segment.take(grad, first_row)
        queries, g = segment.pad(own), segment.pad(own_grad)
        d_queries = torch.zeros_like(queries)
        for seen, keys, hidden in problem.seen_by(index):
            scores = _scores(queries, keys.k, alpha)
            weights, d_weights = silu(scores), torch.bmm(g, keys.v.mT)
            if hidden is not None:
                weights.masked_fill_(hidden, 0)
                d_weights.masked_fill_(hidden, 0)
            d_scores = torch.ops.aten.silu_backward(d_weights, scores)
            d_queries.baddbmm_(d_scores, keys.k, alpha=alpha)
            key_grads[seen].k.baddbmm_(d_scores.mT, queries, alpha=alpha)
            key_grads[seen].v.baddbmm_(weights.mT, g)
        segment.take(dq, first_row).add_(segment.unpad(d_queries))
        if index != STATIC:
            own_k, own_v = segment.take(problem.k), segment.take(problem.v)
            score = alpha * (own * own_k).sum(-1, keepdim=True)
            d_weight = (own_grad * own_v).sum(-1, keepdim=True)
            d_score = alpha * torch.ops.aten.silu_backward(d_weight, score)
            segment.take(dq, first_row).add_(d_score * own_k)
            segment.take(dk).add_(d_score * own)
            segment.take(dv).add_(silu(score) * own_grad)
    for segment, grads in zip(problem.segments, key_grads, strict=False):
        segment.take(dk).add_(segment.unpad(grads.k))
        segment.take(dv).add_(segment.unpad(grads.v))
    shared = (*k.shape[:2], q.shape[1] // k.shape[1], k.shape[2])  # query heads of a key's head
    return dq, dk.view(shared).sum(2), dv.view(shared).sum(2)


def _scores(queries: Tensor, keys: Tensor, alpha: float) -> Tensor:
    """alpha * queries keys^T, the scale applied within the product."""
    none = queries.new_zeros(())
    return torch.baddbmm(none, queries, keys.mT, beta=0, alpha=alpha)
