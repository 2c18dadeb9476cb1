"""One HSTU layer of a plan: projection, attention and its end, three launches or five.

Each layer ends with the norm that the next one begins with: one launch makes both where it is
faster (`plugins.tail.fits`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model_def.model import Layer
from plugins.fused import Frame, Product, products
from plugins.loader import Library
from plugins.tail import Norm, fits, layer_tail


class Weights:
    """weight [columns, depth] in 16 bits and bias [columns] in float32, of one product."""

    def __init__(self, weight: Tensor, bias: Tensor, like: Tensor):
        self.weight = weight.detach().to(like.device, like.dtype).contiguous()
        self.bias = bias.detach().to(like.device, torch.float32).contiguous()

    def product(self, x: Tensor, out: Tensor, **more: Tensor) -> Product:
        """x weight^T + bias into `out`."""
        return Product(x, self.weight, self.bias, out, **more)


class Rows(NamedTuple):
    """Which request, segment and group each row of a batch is of."""

    frame: Frame
    rt_offsets: Tensor
    candidate_offsets: Tensor


class PlannedLayer:
    """A layer's weights and launches; the last one's projection is two: (u, q) and (v, k)."""

    def __init__(self, layer: Layer, like: Tensor, library: Library, *, last: bool):
        config, d = layer.config, layer.config.d_model
        self._config, self._library = config, library
        weight, bias = layer.uvqk_weight.view(4, d, d), layer.uvqk_bias.view(4, d)
        parts = ((0, 2), (1, 3)) if last else ((0, 1, 2, 3),)
        self._projections = [
            Weights(weight[list(p)].flatten(0, 1), bias[list(p)].flatten(), like) for p in parts
        ]
        self._out = Weights(layer.out_weight, layer.out_bias, like)

        def norm(weight: Tensor, bias: Tensor, eps: float) -> Norm:
            return Norm(weight.detach().to(like), bias.detach().to(like), eps)

        self._norm = norm(layer.ln_in_weight, layer.ln_in_bias, config.eps)
        self._gated_norm = norm(layer.ln_out_weight, layer.ln_out_bias, config.eps_gated)

    def begin(self, x: Tensor, group: Tensor) -> Tensor:
        """The layer's first norm of x [rows, d]; group int32 [rows]."""
        norm = self._norm
        normed: Tensor = torch.ops.mtgr.group_layer_norm(x, group, norm.weight, norm.bias, norm.eps)
        return normed

    def run(
        self,
        x: Tensor,
        n: Tensor,
        rows: Rows,
        query: int,
        after: "PlannedLayer | None",
        skip: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """x of all rows and n = begin(x) -> the layer's output, and `after.begin` of that.

        Both are of the rows of segments >= `query`, those after `skip`; without a layer `after` the
        second is the first.
        """
        attended, u = self._attend(n, rows, query, skip)
        x, group = x[skip:], rows.frame.group[skip:]
        if fits(*x.shape):
            out, norm = self._out, None if after is None else after._norm  # its own class
            return layer_tail(
                self._library, attended, u, x, group, self._gated_norm, out.weight, out.bias, norm
            )
        norm = self._gated_norm
        gated = torch.ops.mtgr.gated_group_layer_norm(
            attended, u, group, norm.weight, norm.bias, norm.eps
        )
        y = torch.empty_like(gated)
        products(self._library, self._out.product(gated, y, residual=x))
        return y, y if after is None else after.begin(y, group)

    def _attend(self, n: Tensor, rows: Rows, query: int, skip: int) -> tuple[Tensor, Tensor]:
        """Attention's output and its gate u, each [query rows, d]."""
        config, frame = self._config, rows.frame
        inputs = (n,) if len(self._projections) == 1 else (n[skip:], n)
        made = [
            x.new_empty(len(x), len(weights.weight))
            for weights, x in zip(self._projections, inputs, strict=True)
        ]
        parts = zip(self._projections, inputs, made, strict=True)
        products(self._library, *(w.product(x, out) for w, x, out in parts), silu=True)
        u, v, q, k = self._split(made)
        attended = torch.ops.mtgr.hstu_attention(
            q,
            k,
            v,
            frame.static_offsets,
            rows.rt_offsets,
            rows.candidate_offsets,
            frame.rt_visible_out,
            frame.candidate_visible_out,
            config.alpha,
            config.inv_n,
            query,
        )
        return attended.flatten(1), u.flatten(1)

    def _split(self, made: list[Tensor]) -> tuple[Tensor, ...]:
        """u, v, q, k, each [rows, H, D], of one projection's output or of (u, q) and (v, k)."""
        shape = (-1, 4 // len(made), self._config.heads, self._config.head_dim)
        if len(made) == 1:
            return made[0].view(shape).unbind(1)
        (u, q), (v, k) = (part.view(shape).unbind(1) for part in made)
        return u, v, q, k
