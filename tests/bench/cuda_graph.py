"""The cuda-graph engine on one GPU: time of one captured run, and of a call with its copies.

    python -m tests.bench.cuda_graph

S+U 1010, R 100, K 500, bf16. Useful FLOPs are 10 d^2 a row and 4 d a visible pair, a layer; in the
last layer keys and values of all rows, the rest of candidates only.
"""

import sys
import time

import numpy as np
import torch

from engine_build.precision import in_precision
from engine_build.requests import random_batch
from engine_build.runtime.buckets import size_of
from engine_build.runtime.cuda_graph import CudaGraphEngine
from engine_build.serving import Serving
from model_def.config import PRESETS, ModelConfig
from model_def.id_table import IdTable
from model_def.model import MTGR
from plugins import loader
from tests.bench.model import PROFILE, SCHEMA

STATIC, REALTIME, CANDIDATES = PROFILE + 1000, 100, 500
RUNS = 30
CASES = [("small", 1), ("medium", 1), ("large", 1), ("small", 16), ("large", 16)]


def useful_flops(config: ModelConfig, requests: int) -> float:
    """Of one batch of `requests` requests."""
    d, rows = config.d_model, STATIC + REALTIME + CANDIDATES
    of_candidates = CANDIDATES * (STATIC + REALTIME + 1)
    pairs = STATIC**2 + REALTIME * STATIC + REALTIME * (REALTIME + 1) / 2 + of_candidates
    whole = 10 * d * d * rows + 4 * d * pairs
    last = 4 * d * d * rows + 6 * d * d * CANDIDATES + 4 * d * of_candidates
    return requests * ((config.layers - 1) * whole + last)


def measure(preset: str, requests: int) -> str:
    """A line of the table: GPU time of a replay, time of a call, rate, payload."""
    config = PRESETS[preset]
    tables = {name: IdTable(range(1000)) for name in SCHEMA.id_tables}
    net = in_precision(MTGR(config, SCHEMA, tables), "bfloat16")
    sizes = [(STATIC - PROFILE, REALTIME, CANDIDATES)] * requests
    batch = random_batch(SCHEMA, np.random.default_rng(0), sizes)
    bucket = size_of(batch, SCHEMA)
    engine = CudaGraphEngine(Serving(net), SCHEMA, (bucket,))
    graph = engine._graphs[bucket][1]
    taken, called = [], []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end))
        start = time.perf_counter()
        engine.run(batch)
        called.append(1e3 * (time.perf_counter() - start))
    assert engine.uncaptured_runs == 0
    replay, call = float(np.median(taken)), float(np.median(called))
    rate = useful_flops(config, requests) / replay / 1e9
    return (
        f"{preset:>7} {requests:>3} {replay:>10.3f} {call:>10.3f} {rate:>8.0f}"
        f" {batch.payload_bytes:>9}"
    )


def main() -> int:
    """Print the table; there is no bar: these figures are absolute, of one card."""
    loader.register()
    print(f"{'model':>7} {'B':>3} {'replay ms':>10} {'call ms':>10} {'TFLOP/s':>8} {'bytes':>9}")  # noqa: T201  # a benchmark's output
    for preset, requests in CASES:
        print(measure(preset, requests), flush=True)  # noqa: T201  # the same
    return 0


if __name__ == "__main__":
    sys.exit(main())
