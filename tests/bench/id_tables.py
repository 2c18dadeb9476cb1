"""A table of five million ids, grown while a model trains, beside one preallocated; then pruned.

python -m tests.bench.id_tables
"""

import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from model_def.batch import Sample, merge, pack
from model_def.checkpoint import Checkpoint
from model_def.config import PRESETS, PackageConfig
from model_def.data.samples import TrainingSample
from model_def.evaluate import predict
from model_def.growing_table import Admission, GrowingTable
from model_def.metrics import gauc
from model_def.options import TrainingOptions
from model_def.prune import Rule, prune, sizes
from model_def.rows import rows_from_columns
from model_def.schema import CategoryFeature, FeatureSchema, IdFeature, NumberFeature
from model_def.trainer import Trainer
from tests.bench.timing import report

IDS = 5_000_000
USERS, CANDIDATES, TAGS = 16, 200, 16
"""Users of a step, candidates of each, and ids of each candidate."""
HOT = 1_000_000
"""Ids that half of the traffic returns to, by Zipf's law; the other half is new every time."""

TINY = PRESETS["tiny"].model_copy(update={"tasks": ("ctr",)})
SCHEMA = FeatureSchema(
    name="ids",
    profile=(CategoryFeature(name="age", size=8),),
    behaviour=(IdFeature(name="item_id", table="ids"),),
    item=tuple(IdFeature(name=f"tag{i}" if i else "item_id", table="ids") for i in range(TAGS)),
    cross=(NumberFeature(name="affinity"),),
)


class Traffic:
    """Steps of users among long-tailed ids; what an id is worth is a function of it."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)
        weights = 1 / np.arange(1, HOT + 1)
        self._cumulative = np.cumsum(weights) / weights.sum()
        self._new = (seed + 1) << 40

    def step(self) -> tuple[TrainingSample, NDArray[np.float32]]:
        """A batch of USERS users, and its labels [rows, 1]."""
        rng, rows = self._rng, USERS * CANDIDATES
        ids = np.searchsorted(self._cumulative, rng.random((rows, TAGS)))
        new = rng.random(ids.shape) < 0.5
        ids[new] = self._new + np.arange(new.sum())
        self._new += int(new.sum())
        affinity = rng.normal(size=rows)
        worth = np.sin(ids * 0.7).sum(1) / 2
        clicks = rng.random(rows) < 1 / (1 + np.exp(2 - worth - affinity))
        layouts = SCHEMA.layouts
        columns = {f.name: ids[:, i] for i, f in enumerate(SCHEMA.item)} | {"affinity": affinity}
        candidates = rows_from_columns(layouts["candidate"], columns, rows)
        batches = [
            pack(
                SCHEMA,
                Sample(
                    snapshot_ms=0,
                    profile=rows_from_columns(layouts["profile"], {"age": [1]}, 1),
                    lifelong=np.zeros(0, layouts["lifelong"].record),
                    realtime=np.zeros(0, layouts["realtime"].record),
                    context=rows_from_columns(layouts["context"], {}, 1, {"time_ms": [1]}),
                    candidates=candidates[start : start + CANDIDATES],
                    context_candidates=np.array([CANDIDATES], np.int32),
                ),
            )
            for start in range(0, rows, CANDIDATES)
        ]
        sample = TrainingSample(merge(batches, SCHEMA), np.arange(rows), at_ms=1)
        return sample, clicks[:, None].astype(np.float32)


def preallocated(trainer: Trainer) -> None:
    """Give a new trainer a table that has room, touched, for every id to come."""
    options = TrainingOptions()
    table = GrowingTable(TINY.embedding_dim, 0.05, options.seed, Admission(), IDS + 200_000)
    for chunks in (table._records, table._uses):
        for chunk in chunks._chunks:
            chunk.view(np.uint8)[:] = 0
    trainer._tables._tables["ids"] = table


def grown_and_preallocated() -> tuple[Trainer, dict[str, float]]:
    """Both train on the same steps in turns until IDS ids; the grown one, and seconds of each."""
    traffic = Traffic(0)
    options = TrainingOptions(min_id_count=1, learning_rate=3e-3, warm_up=0)
    labels = np.zeros((USERS * CANDIDATES, 1), np.float32)
    labels[::8] = 1  # the base rate that training starts from
    sides = {name: Trainer(TINY, SCHEMA, labels, options) for name in ("grown", "preallocated")}
    preallocated(sides["preallocated"])
    taken, table, steps = dict.fromkeys(sides, 0.0), sides["grown"]._tables._tables["ids"], 0
    losses: list[float] = []
    while len(table) < IDS:
        batch, labels = traffic.step()
        order = list(sides.items())
        for name, trainer in order if steps % 2 else order[::-1]:
            trainer._labels = labels
            start = time.perf_counter()
            result = trainer.step([batch], 0.1)
            taken[name] += time.perf_counter() - start
        losses.append(result.loss.item())
        steps += 1
    first, last = np.mean(losses[:10]), np.mean(losses[-10:])
    print(f"{len(table):,} ids in {steps} steps; loss {first:.4f} -> {last:.4f}")  # noqa: T201  # a benchmark's output
    return sides["grown"], taken


def held_out(model: torch.nn.Module) -> float:
    """GAUC by user of traffic that was not trained on."""
    found = []
    for batch, labels in steps_of(Traffic(7), 40):
        user = np.repeat(np.arange(USERS), CANDIDATES)
        found.append(gauc(labels[:, 0], predict(model, [batch])[:, 0], user).value)
    return float(np.mean(found))


def steps_of(traffic: Traffic, count: int) -> Iterator[tuple[TrainingSample, NDArray[np.float32]]]:
    """So many steps."""
    for _ in range(count):
        yield traffic.step()


def main() -> int:
    """Run both comparisons; the exit status counts the bars missed."""
    torch.set_num_threads(1)
    trainer, taken = grown_and_preallocated()
    ratio = taken["grown"] / taken["preallocated"]
    held = [report("training, grown / preallocated table", ratio, 1.5, at_least=False)]
    model, tables, uses = trainer.finish()
    config = PackageConfig(version="bench", model=TINY, features=SCHEMA)
    whole = Checkpoint(config, model, tables, {}, uses)
    pruned = prune(whole, Rule(share=0.2))
    for name, each in (("whole", whole), ("pruned", pruned)):
        size = sizes(each)["ids"]
        print(  # noqa: T201  # a benchmark's output
            f"  {name}: {size.rows:,} rows, {size.training_bytes / 1e6:,.0f} MB in training, "
            f"{size.serving_bytes / 1e6:,.0f} MB frozen"
        )
    before, after = held_out(model), held_out(pruned.model)
    print(f"  GAUC {before:.5f} -> {after:.5f}")  # noqa: T201  # a benchmark's output
    held.append(report("GAUC lost by pruning, 1e-4", 1e4 * (before - after), 5, at_least=False))
    return held.count(False)


if __name__ == "__main__":
    sys.exit(main())
