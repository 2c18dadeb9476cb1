"""The training step: what it does not depend on, and training that goes on after an end."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from model_def.checkpoint import CheckpointError
from model_def.config import PRESETS
from model_def.data.logs import Logs
from model_def.data.samples import TrainingSample, joined, task_labels, training_samples
from model_def.data.simulate import simulate
from model_def.data.simulator import SCHEMA, Marketplace
from model_def.options import TrainingOptions
from model_def.train import plan, train
from model_def.trainer import Trainer
from tests.bench import kill_training

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def logs() -> Logs:
    """Two days of a very small city."""
    return simulate(Marketplace(users=30, items=60, seed=5), 1_767_571_200_000, days=2).logs


@pytest.fixture(scope="module")
def samples(logs: Logs) -> list[TrainingSample]:
    """All of it packed."""
    return list(training_samples(logs))


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All weights of a finished trainer, id tables too, rows by id."""
    model, id_tables, _ = trainer.finish()
    state = dict(model.state_dict())
    for name, table in id_tables.items():
        order = torch.from_numpy(np.append(0, 1 + np.argsort(table.ids)))
        state[f"embeddings.values.{name}"] = state[f"embeddings.values.{name}"][order]
    return state


@pytest.mark.parametrize("listwise", [0.0, 0.5])
def test_the_split_does_not_change_the_step(
    samples: list[TrainingSample], logs: Logs, listwise: float
) -> None:
    """However a step's samples are split into batches, and in whatever order, it is one step."""
    labels = task_labels(logs.requests, TINY.tasks)
    labels[::7] = np.nan
    chosen = list(range(12))
    found = []
    for split in ([12], [1, 11], [5, 4, 3], [1] * 12):
        trainer = Trainer(TINY, SCHEMA, labels, TrainingOptions(listwise=listwise))
        for first in (0, 12):
            order = chosen if len(split) < 3 else chosen[::-1]
            parts = np.split(np.array(order), np.cumsum(split)[:-1])
            trainer.step([joined([samples[first + i] for i in p], SCHEMA) for p in parts], 0.5)
        found.append(parameters(trainer))
    for other in found[1:]:
        for name, value in other.items():
            torch.testing.assert_close(value, found[0][name], rtol=1e-3, atol=1e-5, msg=name)


def test_accumulating_batches_is_one_larger_batch(samples: list[TrainingSample]) -> None:
    """A step of `accumulate` batches holds the samples of that many."""
    small = plan(samples, TrainingOptions(epochs=1, batch_tokens=500))
    steps = plan(samples, TrainingOptions(epochs=1, batch_tokens=500, accumulate=3))
    assert [len(step.batches) for step in steps[:-1]] == [3] * (len(steps) - 1)
    flat = [batch for step in steps for batch in step.batches]
    assert all(np.array_equal(a, b.batches[0]) for a, b in zip(flat, small, strict=True))


def test_half_precision_learns_alike(samples: list[TrainingSample], logs: Logs) -> None:
    """In bfloat16 the losses of a short training follow those in float32 within a percent or so,
    and the weights stay float32."""
    labels = task_labels(logs.requests, TINY.tasks)
    found = {}
    for precision in ("float32", "bfloat16"):
        options = TrainingOptions(epochs=1, batch_tokens=1000, precision=precision)
        trained = train(TINY, SCHEMA, samples, labels, options)
        found[precision] = np.array(trained.losses)
        assert {p.dtype for p in trained.model.parameters()} == {torch.float32}
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.03)
    assert not np.array_equal(found["bfloat16"], found["float32"])


class Ended(Exception):
    """What ends a training in the next test."""


def test_an_ended_training_goes_on_to_the_same_weights(
    samples: list[TrainingSample], logs: Logs, tmp_path: Path
) -> None:
    """Ended at any step and started again, a training gives the same weights, losses and curves
    bit for bit."""
    labels = task_labels(logs.requests, TINY.tasks)
    options = TrainingOptions(epochs=2, batch_tokens=400, min_id_count=3, accumulate=2)
    whole = train(TINY, SCHEMA, samples, labels, options, directory=tmp_path / "a", save_every=4)
    ends = iter((3, 6, 6, 11, 10_000))
    while True:
        end = next(ends)

        def progress(step: int, loss: float, end: int = end) -> None:
            if step == end:
                raise Ended

        try:
            resumed = train(
                TINY,
                SCHEMA,
                samples,
                labels,
                options,
                progress,
                directory=tmp_path / "b",
                save_every=4,
            )
            break
        except Ended:
            continue
    assert end == 10_000
    state, again = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    assert resumed.losses == whole.losses
    curves = [(tmp_path / name / "curves.csv").read_text() for name in "ab"]
    assert curves[0] == curves[1]
    rows = list(csv.DictReader(curves[0].splitlines()))
    assert int(rows[-1]["step"]) == len(whole.losses)
    assert sum(int(row["exposures"]) for row in rows) == 2 * len(labels)


def test_the_state_of_another_training_is_refused(
    samples: list[TrainingSample], logs: Logs, tmp_path: Path
) -> None:
    """A state of other options, features or samples is refused, each difference listed."""
    labels = task_labels(logs.requests, TINY.tasks)
    options = TrainingOptions(epochs=1)
    train(TINY, SCHEMA, samples, labels, options, directory=tmp_path, save_every=1)
    other = options.model_copy(update={"learning_rate": 1e-4})
    with pytest.raises(CheckpointError, match=r"(?s)learning_rate: 0.003 there, 0.0001 here"):
        train(TINY, SCHEMA, samples, labels, other, directory=tmp_path)
    config = TINY.model_copy(update={"mask": "causal"})
    with pytest.raises(CheckpointError, match=r"(?s)model.mask: dynamic there, causal here$"):
        train(config, SCHEMA, samples, labels, options, directory=tmp_path)
    with pytest.raises(CheckpointError, match=r"samples.count: \d+ there, 9 here"):
        train(TINY, SCHEMA, samples[:9], labels, options, directory=tmp_path)
    (tmp_path / "state.pt").write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match="not a training's state"):
        train(TINY, SCHEMA, samples, labels, options, directory=tmp_path)


def test_killed_training_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """`mtgr train`, killed twice with SIGKILL and started again, writes the checkpoint of
    one that was left alone."""
    kill_training.compare(tmp_path, kills=2, seed=1)
