"""Time of one HSTU layer on a GPU and of each of its parts: python -m tests.plugins.bench_layer

bf16, d_model 768 (3 heads of 256), S+U 1100, R 100, K 500: the launches of a layer as the engine's
plan makes them, from one normed input to the next, and what PyTorch's library takes for the
products alone. Of few requests the plan makes one launch of a layer's end, which is told as `end`
beside the three that it replaces. Ten calls in a graph, median of the replays.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from model_def import ops
from plugins import loader
from plugins.fused import Product, products
from plugins.tail import Norm, fits, layer_tail

D, HEADS, STATIC, REALTIME, CANDIDATES = 768, 3, 1100, 100, 500


def median_us(call: Callable[[], object], calls: int = 10, replays: int = 40) -> float:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    times = []
    for _ in range(replays + 5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / calls)
    return statistics.median(times[5:])


def bench(kernels: loader.Library, batch: int) -> dict[str, float]:
    torch.manual_seed(0)
    rows = batch * (STATIC + REALTIME + CANDIDATES)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device="cuda") * scale).bfloat16()

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device="cuda")

    x, weight, bias = random(rows, D), random(4 * D, D, scale=D**-0.5), random(4 * D).float()
    out_weight, out_bias = random(D, D, scale=D**-0.5), random(D).float()
    affine = [random(4, D) for _ in range(4)]
    group = torch.randint(0, 4, (rows,), dtype=torch.int32, device="cuda")
    offsets = [integers([n * b for b in range(batch + 1)]) for n in (STATIC, REALTIME, CANDIDATES)]
    visible = integers(list(range(REALTIME)) * batch), integers([REALTIME] * CANDIDATES * batch)

    def norm(x: Tensor) -> Tensor:
        return ops.group_layer_norm(x, group, affine[0], affine[1], 1e-6)

    def project(n: Tensor) -> Tensor:
        out = torch.empty(rows, 4 * D, dtype=n.dtype, device=n.device)
        products(kernels, Product(n, weight, bias, out), silu=True)
        return out

    def attend(uvqk: Tensor) -> Tensor:
        _, v, q, k = uvqk.view(rows, 4, HEADS, D // HEADS).unbind(1)
        return torch.ops.mtgr.hstu_attention(
            q, k, v, *offsets, *visible, (D // HEADS) ** -0.5, 1 / 1024, 0
        )

    def gate(a: Tensor, uvqk: Tensor) -> Tensor:
        return ops.gated_group_layer_norm(
            a.flatten(1), uvqk[:, :D], group, affine[2], affine[3], 1e-12
        )

    def output(g: Tensor) -> Tensor:
        out = torch.empty_like(x)
        products(kernels, Product(g, out_weight, out_bias, out, residual=x))
        return out

    def end(a: Tensor, uvqk: Tensor) -> Tensor:
        if not fits(rows, D):
            return norm(output(gate(a, uvqk)))
        gated, after = Norm(*affine[2:], 1e-12), Norm(*affine[:2], 1e-6)
        u = uvqk[:, :D]
        return layer_tail(kernels, a.flatten(1), u, x, group, gated, out_weight, out_bias, after)[1]

    def layer() -> Tensor:
        uvqk = project(n)
        return end(attend(uvqk), uvqk)

    n = norm(x)
    uvqk = project(n)
    attended = attend(uvqk)
    gated = gate(attended, uvqk)
    halves = bias.to(x.dtype), out_bias.to(x.dtype)
    parts: dict[str, Callable[[], object]] = {
        "projection + SiLU": lambda: project(n),
        "attention": lambda: attend(uvqk),
        "end": lambda: end(attended, uvqk),
        "layer": layer,
        "gated norm": lambda: gate(attended, uvqk),
        "output + residual": lambda: output(gated),
        "norm": lambda: norm(x),
        "library's projection": lambda: linear(n, weight, halves[0]),
        "library's output": lambda: linear(gated, out_weight, halves[1]),
    }
    return {name: median_us(call) for name, call in parts.items()}


if __name__ == "__main__":
    registered = loader.register()
    for batch in (1, 8):
        times = bench(registered, batch)
        line = ", ".join(f"{name} {us:.1f}" for name, us in times.items())
        print(f"B {batch}: {line} us")  # noqa: T201  # the figures are what this program is for
