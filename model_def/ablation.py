"""What each part of MTGR is worth: variants of one model, trained alike on simulated cities.

Each seed is a city of its own, simulated and trained with that seed, and shared by all variants,
so that differences are taken within a seed. Source: paper section 6.3, Tables 3 and 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from model_def.config import ONE_GROUP, PRESETS, ModelConfig
from model_def.data.logs import Logs
from model_def.data.samples import select_requests, task_labels, time_split, training_samples
from model_def.data.simulate import simulate
from model_def.data.simulator import DAY_MS, Marketplace
from model_def.evaluate import predict, report
from model_def.metrics import auc
from model_def.options import TrainingOptions
from model_def.rows import columns_from_rows, rows_from_columns
from model_def.train import train

Metrics = Mapping[str, float]

START_MS = 1_767_571_200_000


@dataclass(frozen=True)
class Variant:
    """A change of the model: to its config, or to the features that it reads.

    Without the dynamic mask, real-time events are seen by their order alone; candidates still do
    not see each other, so that the leak is the only difference, and none as served.
    """

    name: str
    change: Callable[[ModelConfig], ModelConfig] = lambda config: config
    cross: bool = True


FULL = Variant("MTGR")
ABLATIONS = (
    Variant("w/o cross features", cross=False),
    Variant("w/o GLN", lambda config: config.model_copy(update={"token_groups": ONE_GROUP})),
    Variant("w/o dynamic mask", lambda config: config.model_copy(update={"mask": "causal"})),
)
VARIANTS = {variant.name: variant for variant in (FULL, *ABLATIONS)}
TRUTH = "best reachable"


@dataclass(frozen=True)
class Settings:
    """The city and the training of every run.

    Users enough to learn from without seeing their exposures often: of 800, MTGR overfits before
    it has learned what it can, and four epochs are too few to learn to read a leak.
    """

    preset: str = "tiny"
    days: int = 8
    users: int = 3200
    items: int = 800
    candidates: int = 24
    epochs: int = 4


@dataclass(frozen=True)
class Result:
    """What one variant measured on one seed's city; metrics by name, `ctr_auc` and so on.

    `served`: held-out requests each as it was served. `windows`: the same exposures in training
    windows, as an offline evaluation without the dynamic mask would see them. `trained`: CTR AUC
    on the last training day's windows.
    """

    variant: str
    seed: int
    served: Metrics
    windows: Metrics
    trained: float


def run(variant: Variant, seed: int, settings: Settings) -> tuple[Result, Result]:
    """Train a variant on a seed's city and measure its last day; the second is the truth's."""
    market = Marketplace(settings.users, settings.items, seed)
    simulated = simulate(market, START_MS, settings.days, settings.candidates, seed)
    logs = simulated.logs if variant.cross else without_cross(simulated.logs)
    last_day = int(logs.requests.context["time_ms"].max()) // DAY_MS * DAY_MS
    past, future = time_split(logs, last_day)
    config = variant.change(PRESETS[settings.preset])
    labels, truth = (task_labels(part.requests, config.tasks) for part in (past, future))
    options = TrainingOptions(
        epochs=settings.epochs, batch_tokens=2048, embedding_std=1.0, branch_gain=0.3, seed=seed
    )
    model = train(config, logs.schema, list(training_samples(past)), labels, options).model

    def measured(probabilities: np.ndarray) -> Metrics:
        reports = report(config.tasks, future.requests, truth, probabilities)
        return {
            f"{r.task}_{name}": value
            for r in reports
            for name, value in (("auc", r.auc), ("gauc", r.gauc_request.value))
        }

    served, windows = (
        measured(predict(model, list(training_samples(future, as_served=as_served))))
        for as_served in (True, False)
    )
    recent = select_requests(past, past.requests.context["time_ms"] >= last_day - DAY_MS)
    seen = predict(model, list(training_samples(recent)))[:, 0]
    trained = auc(task_labels(recent.requests, config.tasks)[:, 0], seen)
    later = logs.requests.context["time_ms"] >= last_day
    best = measured(simulated.truth[np.repeat(later, logs.requests.candidate_counts)])
    return (
        Result(variant.name, seed, served, windows, trained),
        Result(TRUTH, seed, best, best, float("nan")),
    )


def without_cross(logs: Logs) -> Logs:
    """The logs as if their cross features had never been."""
    schema = logs.schema.without_cross()
    columns = columns_from_rows(logs.schema.layouts["candidate"], logs.requests.candidates)
    layout = schema.layouts["candidate"]
    kept = {feature.name: columns[feature.name] for feature in layout.features}
    rows = rows_from_columns(layout, kept, len(logs.requests.candidates))
    requests = replace(logs.requests, candidates=rows)
    return replace(logs, schema=schema, requests=requests)
