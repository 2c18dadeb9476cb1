"""The serving pass of a model in plain PyTorch for requests of one length: what to compare with.

No operator of ours is in it but the id lookup, so `torch.compile` sees the whole of it: structured
attention as batched products per segment, norms and SiLU as PyTorch's, which it fuses as it can.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu

from model_def.model import MTGR, Frame, Layer


class PlainModel:
    """The arrays of a batch of requests of equal lengths (static, real-time, candidates) ->
    probabilities [tasks, T_c]."""

    def __init__(self, model: MTGR, lengths: tuple[int, int, int]):
        self._model, self._lengths = model, lengths

    def __call__(self, arrays: Mapping[str, Tensor]) -> Tensor:
        model, candidates = self._model, self._lengths[2]
        requests = len(arrays["candidate_offsets"]) - 1
        order = torch.arange(requests, device=arrays["candidate_offsets"].device)
        context = order.repeat_interleave(candidates, output_size=requests * candidates)
        tensors = model._embedded({**arrays, "candidate_context": context})
        frame = model._frame(tensors)
        x = torch.cat((model._static_tokens(tensors, frame), model._dynamic_tokens(tensors)))
        for layer in model.layers:
            assert isinstance(layer, Layer)
            x = self._layer(layer, x, frame, requests, last=layer is model.layers[-1])
        return torch.sigmoid(model.logits(x)).T

    def _layer(self, layer: Layer, x: Tensor, frame: Frame, requests: int, *, last: bool) -> Tensor:
        config, d = layer.config, layer.config.d_model
        group = frame.group.long()
        n = layer_norm(x, (d,), eps=config.eps) * layer.ln_in_weight[group]
        n = n + layer.ln_in_bias[group]
        skip = len(x) - requests * self._lengths[2] if last else 0
        weight, bias = layer.uvqk_weight.view(4, d, d), layer.uvqk_bias.view(4, d)

        def project(rows: Tensor, blocks: slice) -> list[Tensor]:
            made = silu(linear(rows, weight[blocks].flatten(0, 1), bias[blocks].flatten()))
            return list(made.unflatten(1, (-1, config.heads, config.head_dim)).unbind(1))

        if last:
            (u, q), (v, k) = project(n[skip:], slice(0, None, 2)), project(n, slice(1, None, 2))
        else:
            u, v, q, k = project(n, slice(None))
        attended = self._attention(q, k, v, frame, requests, config.alpha) * config.inv_n
        z = attended.flatten(1).float() * u.flatten(1).float()
        gated = layer_norm(z, (d,), eps=config.eps_gated) * layer.ln_out_weight[group[skip:]]
        gated = (gated + layer.ln_out_bias[group[skip:]]).to(x.dtype)
        return linear(gated, layer.out_weight, layer.out_bias) + x[skip:]

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, frame: Frame, requests: int, alpha: float
    ) -> Tensor:
        rows = [requests * length for length in self._lengths]

        def split(t: Tensor) -> list[Tensor]:
            # [rows, H, D] -> [B, H, length, D] a segment; those that q lacks are left out.
            kept = rows if len(t) == sum(rows) else rows[2:]
            return [
                part.unflatten(0, (requests, -1)).transpose(1, 2)
                for part in t.split_with_sizes(kept)
            ]

        (k_s, k_r, k_c), (v_s, v_r, v_c), queries = split(k), split(v), split(q)
        realtime = torch.arange(self._lengths[1], device=q.device)
        out = []
        for index, part in enumerate(queries, start=3 - len(queries)):
            seen = silu(alpha * (part @ k_s.mT)) @ v_s
            if index > 0:
                visible = (frame.rt_visible, frame.candidate_visible)[index - 1]
                mask = realtime < visible.view(requests, 1, -1, 1)
                seen = seen + (silu(alpha * (part @ k_r.mT)) * mask) @ v_r
                own_k, own_v = ((k_r, v_r), (k_c, v_c))[index - 1]
                seen = seen + silu(alpha * (part * own_k).sum(-1, keepdim=True)) * own_v
            out.append(seen.transpose(1, 2).flatten(0, 1))
        return torch.cat(out)
