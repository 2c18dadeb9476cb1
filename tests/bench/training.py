"""Training's shortcuts on the CPU, as ratios in one run: token-balanced batches, distinct ids.

python -m tests.bench.training
"""

import sys
import time

import numpy as np
import torch
from numpy.typing import NDArray

from model_def.chunks import Chunks
from model_def.config import PRESETS
from model_def.data.samples import (
    TrainingSample,
    joined,
    task_labels,
    token_batches,
    training_samples,
)
from model_def.data.simulate import simulate
from model_def.data.simulator import SCHEMA, Marketplace
from model_def.growing_table import Admission, GrowingTable
from model_def.id_table import KeyStore
from model_def.options import TrainingOptions
from model_def.trainer import Trainer
from tests.bench.timing import report, seconds

TINY = PRESETS["tiny"]
BATCH_TOKENS = 4096
WIDTH = 32
"""Of the embeddings whose lookup is timed: the small preset's."""
TABLE_IDS = 1_000_000


def long_tailed_city() -> tuple[list[TrainingSample], NDArray[np.float32]]:
    """Samples of a city whose users' histories are long-tailed, and their labels."""
    market = Marketplace(users=400, items=800, seed=0)
    rng = np.random.default_rng(0)
    market.activity = np.exp(rng.normal(-0.3, 1.3, market.users)).clip(max=27)
    logs = simulate(market, 1_767_571_200_000, days=4).logs
    return list(training_samples(logs)), task_labels(logs.requests, TINY.tasks)


def balanced_batches(held: list[bool]) -> None:
    """One epoch in batches of as many tokens, and one in batches of as many samples; as many
    batches of each, taken in turns."""
    samples, labels = long_tailed_city()
    tokens = np.array([sample.tokens for sample in samples])
    rng = np.random.default_rng(0)
    balanced = token_batches(tokens, BATCH_TOKENS, rng)
    fixed = np.array_split(rng.permutation(len(samples)), len(balanced))
    options = TrainingOptions(embedding_std=1.0, branch_gain=0.3)
    sides = {name: Trainer(TINY, SCHEMA, labels, options) for name in ("balanced", "fixed")}
    taken, losses = dict.fromkeys(sides, 0.0), {name: [] for name in sides}
    for number, batches in enumerate(zip(balanced, fixed, strict=True)):
        for (name, trainer), batch in zip(sides.items(), batches, strict=True):
            start = time.perf_counter()
            whole = joined([samples[i] for i in batch], SCHEMA)
            result = trainer.step([whole], number / len(balanced))
            loss, rows = result.loss.item(), len(whole.rows)
            taken[name] += time.perf_counter() - start
            losses[name].append((loss, rows))
    lengths = np.percentile(tokens, [50, 90, 99, 100]).astype(int).tolist()
    print(f"{len(samples)} samples of {lengths} tokens (p50, p90, p99, max), {len(fixed)} batches")  # noqa: T201  # a benchmark's output
    for name, seconds_ in taken.items():
        print(f"  {name}: {len(samples) / seconds_:.0f} samples/s")  # noqa: T201  # a benchmark's output
    ratio = taken["fixed"] / taken["balanced"]
    held.append(report("token-balanced / fixed-size batches, samples/s", ratio, 1.25))
    means, errors = zip(*(curve_end(losses[name]) for name in sides), strict=True)
    print(f"  loss of the last half: balanced {means[0]:.4f}, fixed {means[1]:.4f}")  # noqa: T201  # a benchmark's output
    noise = abs(means[0] - means[1]) / float(np.hypot(*errors))
    held.append(report("their difference, in standard errors", noise, 2, at_least=False))


def curve_end(losses: list[tuple[float, int]]) -> tuple[float, float]:
    """Mean loss of the last half of the steps, by rows, and its standard error."""
    loss, rows = np.array(losses[len(losses) // 2 :]).T
    mean = float(np.average(loss, weights=rows))
    error = np.sqrt(np.average((loss - mean) ** 2, weights=rows) / len(loss))
    return mean, float(error)


def distinct_ids(held: list[bool]) -> None:
    """Ids of one batch -> a vector for each of them: all looked up, and each distinct one once.

    The batch repeats its ids as the simulator's users do; beside its own small table, it is
    looked up in one of TABLE_IDS, as ids that lie anywhere in it.
    """
    logs = simulate(Marketplace(), 1_767_571_200_000, days=2).logs
    samples = list(training_samples(logs))
    tokens = np.array([sample.tokens for sample in samples])
    batch = token_batches(tokens, BATCH_TOKENS, np.random.default_rng(0))[0]
    arrays = joined([samples[i] for i in batch], SCHEMA).batch.arrays
    ids = np.concatenate([arrays[f"{s}_ids"] for s in ("lifelong", "realtime", "candidate")])
    distinct, inverse = np.unique(ids, return_inverse=True)
    print(f"{len(ids)} ids of a batch, {len(distinct)} distinct")  # noqa: T201  # a benchmark's output
    many = np.random.default_rng(1).integers(1, 1 << 62, TABLE_IDS)
    ratio = plain_over_deduplicated(distinct, ids)
    print(f"      the same in a table of these alone: {ratio:.2f}")  # noqa: T201  # a benchmark's output
    ratio = plain_over_deduplicated(many, many[: len(distinct)][inverse])
    held.append(report(f"plain / deduplicated lookup in {TABLE_IDS:,} ids", ratio, 1.3))


def plain_over_deduplicated(known: NDArray[np.int64], ids: NDArray[np.int64]) -> float:
    """Time of looking up every one of `ids`, over that of the training's own way."""
    table = GrowingTable(WIDTH, 1.0, 0, Admission())
    known = np.unique(known)
    table.look_up(np.random.default_rng(2).permutation(known), at_ms=0)
    keys, records = KeyStore(), Chunks(np.float32, (3, WIDTH))
    keys.insert(known, np.random.default_rng(2).permutation(len(known)).astype(np.int32) + 1)
    records.reserve(len(known) + 1)

    def plain() -> torch.Tensor:
        return torch.from_numpy(records.take(keys.find(ids))[:, 0].copy())

    def deduplicated() -> torch.Tensor:
        found = table.look_up(ids)
        vectors = torch.from_numpy(found.records[:, 0].copy())
        return vectors.index_select(0, torch.from_numpy(found.places))

    assert plain().shape == deduplicated().shape
    times = seconds({"plain": plain, "deduplicated": deduplicated}, rounds=101)
    return times["plain"] / times["deduplicated"]


def main() -> int:
    """Run every comparison; the exit status counts the bars missed."""
    torch.set_num_threads(1)
    held: list[bool] = []
    distinct_ids(held)
    balanced_batches(held)
    return held.count(False)


if __name__ == "__main__":
    sys.exit(main())
