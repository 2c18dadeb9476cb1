"""The onnx-cpu engine on one core: how its time grows with candidates, and what one pass saves.

python -m tests.bench.engine_scaling
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from engine_build.export import export_onnx, save_onnx
from engine_build.requests import random_request
from engine_build.runtime.onnx_cpu import MODEL, OnnxCpuEngine
from model_def.batch import PackedBatch
from model_def.config import PRESETS
from model_def.id_table import IdTable
from model_def.model import MTGR
from tests.bench.model import SCHEMA
from tests.bench.timing import report, seconds

LIFELONG, REALTIME = 1000, 100


def request(candidates: int) -> PackedBatch:
    """One request with full sequences."""
    return random_request(SCHEMA, np.random.default_rng(0), LIFELONG, REALTIME, candidates)


def main() -> int:
    """Run every comparison; the exit status counts the bars missed."""
    net = MTGR(PRESETS["small"], SCHEMA, {n: IdTable(range(9)) for n in SCHEMA.id_tables})
    with tempfile.TemporaryDirectory() as directory:
        save_onnx(export_onnx(net), Path(directory) / MODEL)
        engine = OnnxCpuEngine(Path(directory) / MODEL, threads=1)
    batches = {count: request(count) for count in (1, 100, 200, 1000)}
    taken = seconds({str(n): lambda n=n: engine.run(batches[n]) for n in batches}, rounds=9)
    for count in batches:
        print(f"      engine, small, S {LIFELONG}, K {count}: {1e3 * taken[str(count)]:.1f} ms")  # noqa: T201  # a benchmark's output
    held = [
        report("engine time, K 1000 / K 100", taken["1000"] / taken["100"], 2.2, at_least=False),
        report("200 passes / one aggregated pass, K 200", 200 * taken["1"] / taken["200"], 120),
    ]
    return held.count(False)


if __name__ == "__main__":
    sys.exit(main())
