"""How an engine, or a precision, ranks logged requests beside PyTorch in float32.

python -m tests.bench.engine_ranking PACKAGE LOGS --kind cuda-graph
python -m tests.bench.engine_ranking PACKAGE LOGS --precision bfloat16
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_build.package import pytorch_scores
from engine_build.precision import DTYPES, in_precision
from engine_build.runtime.package import open_package
from model_def.batch import PackedBatch
from model_def.checkpoint import load
from model_def.data.logs import Logs
from model_def.data.parquet import read_logs
from model_def.data.samples import select_requests, task_labels, training_samples
from model_def.metrics import gauc
from tests.bench.timing import report

Ranker = Callable[[PackedBatch], Mapping[str, NDArray[np.float32]]]

MOST_GAUC_LOST, MOST_DISORDER = 2.0, 1.0
"""In ten-thousandths of GAUC, in thousandths of rank correlation."""


def last_requests(logs: Logs, count: int) -> list[tuple[PackedBatch, NDArray[np.int64]]]:
    """Each of the last requests as serving would pack it, with its rows in the logs."""
    asked = np.argsort(logs.requests.context["time_ms"], kind="stable")[-count:]
    ends = np.cumsum(logs.requests.candidate_counts)
    packed = []
    for number in asked:
        only = np.zeros(len(ends), bool)
        only[number] = True
        (sample,) = training_samples(select_requests(logs, only))
        first = ends[number] - logs.requests.candidate_counts[number]
        packed.append((sample.batch, first + sample.rows))
    return packed


def spearman(left: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    """Rank correlation of two scores of the same candidates."""
    ranks = [np.argsort(np.argsort(scores, kind="stable")) for scores in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


def compare(logs: Logs, requests: int, ranker: Ranker, reference: Ranker) -> list[bool]:
    """Print each task's difference of GAUC by request, and rank correlation; True where held."""
    packed = last_requests(logs, requests)
    rows = np.concatenate([rows for _, rows in packed])
    group = np.repeat(np.arange(len(packed)), [len(rows) for _, rows in packed])
    scored = [(ranker(batch), reference(batch)) for batch, _ in packed]
    held = []
    for task in scored[0][1]:
        ours, theirs = (np.concatenate([pair[side][task] for pair in scored]) for side in (0, 1))
        label = task_labels(logs.requests, [task])[rows, 0]
        known = ~np.isnan(label)
        lost = abs(
            gauc(label[known], ours[known], group[known]).value
            - gauc(label[known], theirs[known], group[known]).value
        )
        alike = np.mean([spearman(a[task], b[task]) for a, b in scored if len(a[task]) > 2])
        for what, measured, bar in (
            ("GAUC difference, x 1e-4", 1e4 * lost, MOST_GAUC_LOST),
            ("1 - rank correlation, x 1e-3", 1e3 * (1 - float(alike)), MOST_DISORDER),
        ):
            held.append(report(f"{task}: {what}", measured, bar, at_least=False))
    return held


def main(arguments: Any = None) -> int:
    """Compare as the command line says; the exit status counts the bars missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("logs", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument("--kind", help="engine of the package")
    side.add_argument("--precision", choices=sorted(DTYPES), help="of PyTorch on the CPU")
    given = parser.parse_args(arguments)
    package, model = open_package(given.package), load(given.package).model
    logs, _ = read_logs(given.logs, package.config.features)
    if given.kind:
        engine = package.load_engine(given.kind)
        held = compare(
            logs, given.requests, lambda b: engine.run(b).tasks, lambda b: pytorch_scores(model, b)
        )
    else:
        short = in_precision(model, given.precision)
        held = compare(
            logs,
            given.requests,
            lambda b: pytorch_scores(short, b),
            lambda b: pytorch_scores(model, b),
        )
    return held.count(False)


if __name__ == "__main__":
    sys.exit(main())
