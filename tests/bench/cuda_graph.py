"""The cuda-graph engine on one GPU beside the same model in PyTorch, all in one run.

    python -m tests.bench.cuda_graph [--no-compile]

S+U 1100, R 100, K 500, bf16. `eager` and `compiled` are `plain_model.py`, the latter through
`torch.compile` and captured in a graph. Useful FLOPs are 10 d^2 a row and 4 d a visible pair, a
layer; in the last layer keys and values of all rows, the rest of candidates only.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from engine_build.precision import in_precision
from engine_build.requests import random_batch
from engine_build.runtime.buckets import size_of
from engine_build.runtime.cuda_graph import CudaGraphEngine, Slot, computation
from model_def.batch import PackedBatch
from model_def.config import PRESETS, ModelConfig
from model_def.id_table import IdTable
from model_def.model import MTGR
from tests.bench.model import PROFILE, SCHEMA
from tests.bench.plain_model import PlainModel

STATIC, REALTIME, CANDIDATES = 1100, 100, 500
LENGTHS = (STATIC, REALTIME, CANDIDATES)
LONG = SCHEMA.model_copy(update={"lifelong_cap": STATIC - PROFILE})
RUNS = 40
LAUNCH_CYCLES = 200_000
"""More than a graph's launch takes the host: 0.1 ms."""
CASES = [("small", 1, True), ("medium", 1, False), ("large", 1, True), ("large", 16, True)]
"""Preset, requests, whether to compile the plain model too: it takes a minute a shape."""


def useful_flops(config: ModelConfig, requests: int) -> float:
    """Of one batch of `requests` requests."""
    d, rows = config.d_model, sum(LENGTHS)
    of_candidates = CANDIDATES * (STATIC + REALTIME + 1)
    pairs = STATIC**2 + REALTIME * STATIC + REALTIME * (REALTIME + 1) / 2 + of_candidates
    whole = 10 * d * d * rows + 4 * d * pairs
    last = 4 * d * d * rows + 6 * d * d * CANDIDATES + 4 * d * of_candidates
    return requests * ((config.layers - 1) * whole + last)


def gpu_ms(call: Callable[[], object], runs: int = RUNS, *, wait: int = 0) -> float:
    """Median milliseconds between events around one call. Behind `wait` cycles of the GPU's, the
    call is queued whole before the GPU comes to it: its launch by the host is not counted."""
    taken = []
    for _ in range(runs + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(wait)  # torch has no public way to keep a GPU waiting
        begin.record()
        call()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end))
    return float(np.median(taken[3:]))


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as the replay of a graph."""
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


@torch.inference_mode()
def measure(preset: str, requests: int, *, compiled: bool) -> str:
    """A line of the table."""
    config = PRESETS[preset]
    tables = {name: IdTable(range(1000)) for name in LONG.id_tables}
    net = MTGR(config, LONG, tables)
    sizes = [(STATIC - PROFILE, REALTIME, CANDIDATES)] * requests
    batch = random_batch(LONG, np.random.default_rng(0), sizes)
    bucket, device = size_of(batch), torch.device("cuda")
    slot = Slot(LONG, bucket, device)
    slot.stage(batch)
    slot.send()
    compute = computation(net, "bfloat16", device)
    engine = CudaGraphEngine(compute, config.tasks, LONG, (bucket,))
    scores = engine.run(batch).tasks

    plain = PlainModel(in_precision(net, "bfloat16").to(device), LENGTHS)
    eager = plain(slot.arrays).float().cpu().numpy()
    worst = max(float(np.abs(scores[t] - eager[i]).max()) for i, t in enumerate(config.tasks))
    eager_ms = gpu_ms(lambda: plain(slot.arrays), 10)
    compiled_ms = float("nan")
    if compiled:
        faster = torch.compile(plain)
        compiled_ms = gpu_ms(captured(lambda: faster(slot.arrays)), wait=LAUNCH_CYCLES)
    replay = gpu_ms(captured(lambda: compute(slot.arrays)), wait=LAUNCH_CYCLES)
    rate = useful_flops(config, requests) / replay / 1e9
    times = f"{eager_ms:>9.3f} {compiled_ms:>9.3f} {replay:>9.3f} {call_ms(engine, batch):>8.3f}"
    ratios = f"{eager_ms / replay:>8.1f} {compiled_ms / replay:>10.1f}"
    copy_us = 1e3 * gpu_ms(slot.send)
    payload = f"{slot.bytes:>8} {copy_us:>7.1f}"
    return f"{preset:>7} {requests:>3} {times} {rate:>8.0f} {ratios} {payload} {worst:>8.1e}"


def call_ms(engine: CudaGraphEngine, batch: PackedBatch) -> float:
    """Median milliseconds of a whole call on the host's clock, staging and both copies included."""
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        engine.run(batch)
        taken.append(1e3 * (time.perf_counter() - start))
    return float(np.median(taken))


def main() -> int:
    """Print the table; there is no bar: these figures are absolute, of one card."""
    print(torch.cuda.get_device_name())  # noqa: T201  # a benchmark's output
    print(  # noqa: T201  # the same
        f"{'model':>7} {'B':>3} {'eager ms':>9} {'compiled':>9} {'ours':>9} {'call ms':>8}"
        f" {'TFLOP/s':>8} {'x eager':>8} {'x compiled':>10} {'bytes':>8} {'copy us':>7}"
        f" {'differ':>8}"
    )
    for preset, requests, compiled in CASES:
        line = measure(preset, requests, compiled=compiled and "--no-compile" not in sys.argv)
        print(line, flush=True)  # noqa: T201  # the same
    return 0


if __name__ == "__main__":
    sys.exit(main())
