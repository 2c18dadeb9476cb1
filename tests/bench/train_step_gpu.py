"""One training step on a GPU in bf16, beside the same step with dense-mask attention.

    python -m tests.bench.train_step_gpu

Forward and backward of preset small over requests of S+U 1100, R 100, K 500. Ours is the operators'
kernels forward and their structured gradients; dense is every pair of a request's rows, masked,
through PyTorch's own gradients. Useful FLOPs are three times those of a forward pass over visible
pairs; the card's matrix rate is that of a product 8192 x 8192 x 8192.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, silu

from engine_build.requests import random_batch
from model_def.config import PRESETS
from model_def.id_table import IdTable
from model_def.model import MTGR, to_tensors
from plugins import loader
from tests.bench.cuda_graph import CANDIDATES, LENGTHS, LONG, REALTIME, STATIC, gpu_ms, useful_flops
from tests.bench.model import PROFILE

REQUESTS = 8


class DenseAttention:
    """The attention operator for requests of one length, over all pairs of each request's rows."""

    def __init__(self, rt_visible: Tensor, candidate_visible: Tensor):
        total = sum(LENGTHS)
        first_candidate = STATIC + REALTIME
        mask = torch.zeros(REQUESTS, total, total, dtype=torch.bool, device=rt_visible.device)
        mask[:, :, :STATIC] = True
        event = torch.arange(REALTIME, device=mask.device)
        visible = torch.cat(
            (rt_visible.view(REQUESTS, -1), candidate_visible.view(REQUESTS, -1)), 1
        )
        mask[:, STATIC:, STATIC:first_candidate] = event < visible[:, :, None]
        own = torch.arange(STATIC, total, device=mask.device)
        mask[:, own, own] = True
        self._mask = mask[:, None]

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | float, **_: object
    ) -> Tensor:
        alpha, inv_n, first = rest[-3:]
        lengths = LENGTHS[int(first) :]
        query, key, value = self._by_request(q, lengths), *(self._by_request(t) for t in (k, v))
        weights = silu(alpha * (query @ key.mT)) * self._mask[:, :, -query.shape[2] :]
        parts = ((weights @ value) * inv_n).split_with_sizes(list(lengths), 2)
        return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])

    def _by_request(self, t: Tensor, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
        parts = t.split_with_sizes([REQUESTS * length for length in lengths])
        return torch.cat([p.unflatten(0, (REQUESTS, -1)) for p in parts], 1).transpose(1, 2)


def step(net: MTGR, tensors: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The gradients of one batch; returns its loss."""
    net.zero_grad(set_to_none=True)
    loss = binary_cross_entropy_with_logits(net(tensors).float(), labels)
    loss.backward()
    return loss.detach()


def matrix_rate() -> float:
    """FLOP/s of a large bf16 product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / gpu_ms(lambda: a @ b, 20) * 1e3


def main() -> int:
    """Print both steps; there is no bar."""
    loader.register()
    torch.manual_seed(0)
    tables = {name: IdTable(range(1000)) for name in LONG.id_tables}
    net = MTGR(PRESETS["small"], LONG, tables).to("cuda", torch.bfloat16)
    sizes = [(STATIC - PROFILE, REALTIME, CANDIDATES)] * REQUESTS
    batch = random_batch(LONG, np.random.default_rng(0), sizes)
    tensors = to_tensors(batch, "cuda")
    labels = torch.rand(batch.candidates, len(net.config.tasks), device="cuda").round()
    ours = torch.ops.mtgr.hstu_attention
    dense = DenseAttention(tensors["rt_visible"], tensors["candidate_visible"])
    rate, flops = matrix_rate(), 3 * useful_flops(net.config, REQUESTS)
    attentions: dict[str, Callable[..., Tensor]] = {"ours": ours, "dense mask": dense}
    losses, times = {}, {}
    for name, attention in attentions.items():
        torch.ops.mtgr.hstu_attention = attention
        try:
            losses[name] = float(step(net, tensors, labels))
            times[name] = gpu_ms(lambda: step(net, tensors, labels), 10)
        finally:
            torch.ops.mtgr.hstu_attention = ours
        share = flops / (times[name] / 1e3) / rate
        exposures = batch.candidates / times[name] * 1e3
        print(  # noqa: T201  # a benchmark's output
            f"{name:>10}: {times[name]:.2f} ms, {REQUESTS / times[name] * 1e3:.0f} requests/s,"
            f" {exposures:.0f} exposures/s, {100 * share:.1f}% of {rate / 1e12:.0f} TFLOP/s,"
            f" loss {losses[name]:.5f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
