"""Real data: MTGR, LightGBM and single features rank the same Complete Journey baskets.

    python -m tests.bench.complete_journey [--choose] [--save DIR]

Trains on the baskets before 2017-10-01 and ranks those after: a basket's items among 50 negatives
drawn in proportion to past popularity. LightGBM reads the same item, cross and context features
of the same lists. GAUC is the unweighted mean over households, and over baskets; intervals
resample households. `--choose` trains before September and ranks September's baskets: every
setting below was chosen by that, and the later weeks were scored once. `--save` keeps the logs, the
checkpoint and one real basket as a request, to be served:

    mtgr build DIR/checkpoint DIR/package
    mtgr load-features DIR/logs --until-ms TIMESTAMP_OF_THE_BASKET
    mtgr serve --models '{"grocery": {"package": "DIR/package"}}'
    mtgr rank DIR/basket.json
"""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click
import lightgbm
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from model_def.checkpoint import Checkpoint, save
from model_def.config import PRESETS, PackageConfig
from model_def.data.bodies import rank_body
from model_def.data.importer import Importer
from model_def.data.logs import Logs
from model_def.data.mapping import milliseconds, read_mapping
from model_def.data.parquet import write_logs
from model_def.data.samples import TrainingSample, task_labels, time_split, training_samples
from model_def.evaluate import predict
from model_def.metrics import auc, gauc
from model_def.options import TrainingOptions
from model_def.train import Trained, plan, train
from tests.conftest import ROOT, SHARED

MAPPING = ROOT / "model_def/data/complete_journey.toml"
TABLES = SHARED / "data/complete_journey"

DRAWS = 3
"""Times that MTGR sees each training basket, each time among fresh negatives."""

MODEL = PRESETS["tiny"].model_copy(update={"tasks": ("ctr",)})
TRAINING = TrainingOptions(
    epochs=1,
    learning_rate=2e-3,
    batch_tokens=8192,
    min_id_count=20_000,  # an item's own embedding learns its past, and misleads later
    listwise=0.25,
    embedding_decay=1.0,
)
TREES = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "num_threads": 1,
    "seed": 0,
    "verbose": -1,
}
ROUNDS = 400
RESAMPLES = 10_000

Scores = NDArray[np.floating]


def lists(border: datetime) -> tuple[Logs, list[Logs]]:
    """Logs of all baskets, and DRAWS logs of those before `border`; the first is of the former."""
    mapping = read_mapping(MAPPING).model_copy(update={"train_until": border})
    importer, before_ms = Importer(mapping, TABLES), milliseconds(border)
    logs = importer.logs()
    draws = [time_split(logs, before_ms)[0]]
    for seed in tqdm(range(1, DRAWS), "drawing negatives"):
        draws.append(replace(logs, requests=importer.redrawn(seed, before_ms)))
    return logs, draws


def matrix(logs: Logs, manufacturers: NDArray[np.int64]) -> NDArray[np.float32]:
    """What LightGBM reads: cross and item features, and each basket's context."""
    layouts, requests = logs.schema.layouts, logs.requests
    rows, context = requests.candidates, requests.context
    owner = np.repeat(np.arange(len(requests.request_id)), requests.candidate_counts)
    maker = [f.name for f in layouts["candidate"].ids].index("manufacturer")
    code = np.searchsorted(manufacturers, rows["ids"][:, maker])
    parts = (rows["numbers"], rows["categories"], code[:, None], context["ids"][owner])
    return np.concatenate(parts, 1, dtype=np.float32, casting="unsafe")


def rank_by_trees(before: Logs, later: Logs) -> Scores:
    """LightGBM's scores of the later candidates. More draws did not help it on September."""
    makers = np.unique(before.requests.candidates["ids"][:, 1])
    data = lightgbm.Dataset(matrix(before, makers), before.requests.click)
    booster = lightgbm.train(TREES, data, ROUNDS)
    return np.asarray(booster.predict(matrix(later, makers)))


def rank_by_mtgr(draws: list[Logs], later: Logs) -> tuple[Trained, Scores]:
    """A trained MTGR and its scores of the later candidates."""
    samples: list[TrainingSample] = []
    labels = np.zeros((0, 1), np.float32)
    for logs in draws:
        samples += (
            replace(sample, rows=sample.rows + len(labels)) for sample in training_samples(logs)
        )
        labels = np.concatenate([labels, task_labels(logs.requests, MODEL.tasks)])
    with tqdm(total=len(plan(samples, TRAINING)), desc="training") as bar:

        def progress(step: int, loss: float) -> None:
            bar.update()

        trained = train(MODEL, later.schema, samples, labels, TRAINING, progress)
    return trained, predict(trained.model.eval(), list(training_samples(later)))[:, 0]


def single_features(later: Logs) -> dict[str, Scores]:
    """Each number of a candidate as a ranker, in both directions."""
    numbers = later.schema.layouts["candidate"].numbers
    values = later.requests.candidates["numbers"]
    up = {f.name: values[:, i] for i, f in enumerate(numbers)}
    return up | {f"-{name}": -column for name, column in up.items()}


class Comparison:
    """AUC of each basket and household under each ranker, and their means over households."""

    def __init__(self, later: Logs):
        requests = later.requests
        self.click = requests.click
        owner = np.repeat(np.arange(len(requests.request_id)), requests.candidate_counts)
        _, self.household = np.unique(requests.user_id, return_inverse=True)
        self.owner = self.household[owner]
        self.by_basket = np.split(np.arange(len(owner)), np.cumsum(requests.candidate_counts)[:-1])
        order = np.argsort(self.owner, kind="stable")
        self.by_household = np.split(order, np.cumsum(np.bincount(self.owner))[:-1])

    def by_households(self, scores: Scores) -> float:
        """GAUC over households."""
        return gauc(self.click, scores, self.owner).value

    def aucs(self, scores: Scores) -> tuple[Scores, Scores]:
        """AUC by household, and by basket."""
        households, baskets = (
            np.array([auc(self.click[rows], scores[rows]) for rows in groups])
            for groups in (self.by_household, self.by_basket)
        )
        return households, baskets

    def interval(self, households: Scores, baskets: Scores) -> str:
        """95% bootstrap intervals of both means; the baskets of a household go together."""
        rng = np.random.default_rng(0)
        drawn = rng.multinomial(
            len(households), np.full(len(households), 1 / len(households)), RESAMPLES
        )
        sums = np.bincount(self.household, baskets)
        counts = np.bincount(self.household)
        by_household = drawn @ households / len(households)
        by_basket = (drawn @ sums) / (drawn @ counts)
        return "  ".join(
            f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
            for mean, (low, high) in (
                (households.mean(), np.quantile(by_household, (0.025, 0.975))),
                (baskets.mean(), np.quantile(by_basket, (0.025, 0.975))),
            )
        )


def write_basket(path: Path, later: Logs, items: int = 4) -> None:
    """The request of the last basket of so many known items, and a word on what was bought."""
    requests = later.requests
    starts = np.cumsum(requests.candidate_counts) - requests.candidate_counts
    bought = np.add.reduceat(requests.click, starts, dtype=np.int64)
    last = int(np.flatnonzero(bought >= items)[-1])
    body = rank_body(later, last) | {"top_k": 10}
    path.write_text(json.dumps(body))
    rows = slice(starts[last], starts[last] + requests.candidate_counts[last])
    chosen = np.array(body["candidates"]["item_id"])[requests.click[rows] == 1]
    click.echo(
        f"{path}: household {body['user_id']} at {body['timestamp']} bought "
        f"{', '.join(map(str, chosen))} of {len(requests.click[rows])} candidates"
    )


@click.command()
@click.option("--choose", is_flag=True, help="Train before September and rank September's baskets.")
@click.option("--save", "directory", type=click.Path(path_type=Path), help="Keep what was made.")
def main(choose: bool, directory: Path | None) -> None:
    """Print GAUC of every ranker, and MTGR's lead over the best single feature and LightGBM."""
    torch.set_num_threads(1)
    border, end = datetime(2017, 10, 1), datetime(2018, 1, 1)
    if choose:
        border, end = datetime(2017, 9, 1), border
    logs, draws = lists(border)
    later = time_split(time_split(logs, milliseconds(border))[1], milliseconds(end))[0]
    comparison = Comparison(later)
    trained, mtgr = rank_by_mtgr(draws, later)
    if directory is not None:
        version = f"complete-journey-{border:%Y%m%d}"
        package = PackageConfig(version=version, model=MODEL, features=logs.schema)
        training = {"options": TRAINING.model_dump(), "draws": DRAWS, "until": f"{border}"}
        write_logs(directory / "logs", logs)
        checkpoint = Checkpoint(package, trained.model, trained.id_tables, training)
        save(directory / "checkpoint", checkpoint)
        write_basket(directory / "basket.json", later)
    trees = rank_by_trees(draws[0], later)
    singles = single_features(later)
    best = sorted(singles, key=lambda name: -comparison.by_households(singles[name]))[:5]
    rankers = {"MTGR": mtgr, "LightGBM": trees, **{name: singles[name] for name in best}}
    aucs = {name: comparison.aucs(scores) for name, scores in rankers.items()}
    click.echo(
        f"{len(comparison.by_basket)} baskets of {len(comparison.by_household)} households from "
        f"{border:%Y-%m-%d}; {int(later.requests.click.sum())} of {len(later.requests.click)} "
        "candidates bought"
    )
    click.echo(f"{'GAUC':24} {'household':>9} {'basket':>9}")
    for name, (households, baskets) in aucs.items():
        click.echo(f"{name:24} {households.mean():9.4f} {baskets.mean():9.4f}")
    for name in (best[0], "LightGBM"):
        leads = (a - b for a, b in zip(aucs["MTGR"], aucs[name], strict=True))
        click.echo(f"MTGR over {name}, by household and by basket: {comparison.interval(*leads)}")


if __name__ == "__main__":
    main()
