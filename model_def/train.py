"""Trains an MTGR on packed samples: binary cross-entropy of each labelled task, Adam.

Deterministic: the same samples, options and number of threads give the same weights bit for bit.
Knows nothing of where the samples came from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from model_def.config import ModelConfig
from model_def.data.samples import TrainingSample, joined, token_batches
from model_def.id_table import IdTable
from model_def.model import MTGR, to_tensors
from model_def.schema import FeatureSchema, Frozen, IdFeature


class TrainingOptions(Frozen):
    """How to train; saved with the checkpoint."""

    epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0, description="its peak; see `rate_at`")
    batch_tokens: int = Field(default=4096, ge=1, description="tokens of a batch, at most")
    min_id_count: int = Field(
        default=2, ge=1, description="an id seen less often shares the unknown id's row"
    )
    seed: int = Field(default=0, ge=0)


@dataclass
class Trained:
    """What training returns: the model, its id tables, and the mean loss of each step."""

    model: MTGR
    id_tables: dict[str, IdTable]
    losses: list[float] = field(default_factory=list)


def train(
    config: ModelConfig,
    schema: FeatureSchema,
    samples: Sequence[TrainingSample],
    labels: NDArray[np.float32],
    options: TrainingOptions,
    progress: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train a new model; `labels` are `task_labels` [N, tasks], NaN where not labelled.

    `progress(step, steps, loss)` is called after each step. Raises ValueError when there is
    nothing to learn from.
    """
    check_labels(config, labels, samples)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    id_tables = grow_id_tables(schema, samples, options.min_id_count)
    model = MTGR(config, schema, id_tables)
    start_at_base_rates(model, labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate, fused=True)
    trained = Trained(model, id_tables)
    tokens = np.array([sample.tokens for sample in samples], np.int64)
    epochs = [token_batches(tokens, options.batch_tokens, rng) for _ in range(options.epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * rate_at(step / len(batches))
        sample = joined([samples[i] for i in batch], schema)
        loss = task_loss(model(to_tensors(sample.batch)), torch.from_numpy(labels[sample.rows]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        trained.losses.append(loss.item())
        if progress:
            progress(step + 1, len(batches), trained.losses[-1])
    return trained


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over tasks of the mean cross-entropy over the rows labelled for the task, in nats."""
    known = ~labels.isnan()
    losses = binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return ((losses * known).sum(0) / known.sum(0).clamp(min=1)).sum()


def rate_at(done: float, warm_up: float = 0.05) -> float:
    """Learning rate over its peak, at a share `done` of all steps: linear up, then cosine to 0."""
    if done < warm_up:
        return (done + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def grow_id_tables(
    schema: FeatureSchema, samples: Sequence[TrainingSample], min_count: int = 1
) -> dict[str, IdTable]:
    """The ids that the samples hold, by table."""
    seen: dict[str, list[NDArray[np.int64]]] = {name: [] for name in schema.id_tables}
    for segment in ("profile", "context", "lifelong", "realtime", "candidate"):
        features = schema.layouts[segment].ids
        if not features or not samples:
            continue
        ids = np.concatenate([sample.batch.arrays[f"{segment}_ids"] for sample in samples])
        for position, feature in enumerate(features):
            if isinstance(feature, IdFeature):
                seen[feature.table].append(ids[position :: len(features)])
    tables = {name: IdTable() for name in schema.id_tables}
    for name, columns in seen.items():
        if columns:
            tables[name].add(np.concatenate(columns), min_count)
    return tables


def start_at_base_rates(model: MTGR, labels: NDArray[np.float32]) -> None:
    """Set each head's last bias to the log-odds of its task, so that training starts calibrated."""
    for task, rate in zip(model.config.tasks, np.nanmean(labels, 0).tolist(), strict=True):
        odds = min(max(rate, 1e-6), 1 - 1e-6)
        bias: Tensor = model.heads[task][-1].bias  # type: ignore[index]  # a Sequential
        torch.nn.init.constant_(bias, math.log(odds / (1 - odds)))


def check_labels(
    config: ModelConfig, labels: NDArray[np.float32], samples: Sequence[TrainingSample]
) -> None:
    """Raise ValueError unless each task has labels of both classes."""
    if not samples:
        raise ValueError("no exposures to train on")
    for task, column in zip(config.tasks, labels.T, strict=True):
        rows, positives = int((~np.isnan(column)).sum()), int((column == 1).sum())
        if not 0 < positives < rows:
            raise ValueError(
                f"task {task}: {positives} positives of {rows} labelled exposures; "
                "expected some of both classes"
            )
