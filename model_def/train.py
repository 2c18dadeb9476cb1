"""Trains an MTGR on packed samples: binary cross-entropy of each labelled task, Adam.

Deterministic: the same samples, options and number of threads give the same weights bit for bit,
also when the process is killed and started again. Knows nothing of where the samples came from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_def.config import ModelConfig
from model_def.curves import Curves, Progress
from model_def.data.samples import TrainingSample, joined, token_batches
from model_def.id_table import IdTable
from model_def.model import MTGR
from model_def.options import TrainingOptions
from model_def.resume import TrainingState, identity_of
from model_def.schema import FeatureSchema
from model_def.trainer import Trainer

SAVE_EVERY = 250
"""Steps between saves of the training's state."""


@dataclass
class Trained:
    """What training returns: the model, its id tables and their metadata (`growing_table.USE`),
    and the mean loss of each step."""

    model: MTGR
    id_tables: Mapping[str, IdTable]
    uses: Mapping[str, NDArray[Any]]
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """One optimizer step: its batches, as indices of samples, and the epoch it belongs to."""

    epoch: int
    batches: list[NDArray[np.int64]]


def train(
    config: ModelConfig,
    schema: FeatureSchema,
    samples: Sequence[TrainingSample],
    labels: NDArray[np.float32],
    options: TrainingOptions,
    progress: Progress | None = None,
    *,
    directory: Path | None = None,
    save_every: int = SAVE_EVERY,
    device: str = "cpu",
) -> Trained:
    """Train a new model; `labels` are `task_labels` [N, tasks], NaN where not labelled.

    `progress(step, loss)` is called after each step, from another thread. With a `directory`, the
    state is saved there and a training that was killed goes on from it. Raises ValueError when
    there is nothing to learn from, CheckpointError when `directory` is of another training.
    """
    check_labels(config, labels, samples)
    trainer, first, losses, state = Trainer(config, schema, labels, options, device), 0, [], None
    if directory is not None:
        identity = identity_of(config, schema, options, samples, labels)
        state = TrainingState(directory, save_every, identity)
        if saved := state.load():
            trainer.restore(saved)
            losses = saved["losses"]
            first = len(losses)
    steps = plan(samples, options)
    with Curves(config.tasks, directory, losses, progress) as curves:
        for number, step in enumerate(steps[first:], first):
            batches = [joined([samples[i] for i in batch], schema) for batch in step.batches]
            done = number / len(steps)
            result = trainer.step(batches, done, admit=step.epoch == 0)
            curves.add(options.rate_at(done), result)
            if state and (number + 1) % state.every == 0:
                curves.flush()
                state.save({**trainer.state(), "losses": curves.losses})
        curves.flush()
    return Trained(*trainer.finish(), curves.losses)


def plan(samples: Sequence[TrainingSample], options: TrainingOptions) -> list[Step]:
    """Every step of a training, in order: a function of the samples' lengths and the options."""
    tokens = np.array([sample.tokens for sample in samples], np.int64)
    rng, size = np.random.default_rng(options.seed), options.accumulate
    epochs = [token_batches(tokens, options.batch_tokens, rng) for _ in range(options.epochs)]
    return [
        Step(epoch, batches[start : start + size])
        for epoch, batches in enumerate(epochs)
        for start in range(0, len(batches), size)
    ]


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
