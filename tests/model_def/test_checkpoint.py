"""Checkpoints: what is saved is loaded, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_def import checkpoint as module
from model_def.checkpoint import Checkpoint, CheckpointError, load, save
from model_def.config import PRESETS, PackageConfig
from model_def.data.samples import joined, training_samples
from model_def.id_table import IdTable
from model_def.model import MTGR, to_tensors
from tests.model_def.log_examples import SCHEMA, random_logs


@pytest.fixture
def checkpoint() -> Checkpoint:
    """An untrained model over a small schema."""
    tables = {"item_id": IdTable([5, -3, 2**40, 0])}
    config = PackageConfig(version="v1", model=PRESETS["tiny"], features=SCHEMA)
    return Checkpoint(config, MTGR(config.model, SCHEMA, tables), tables, {"until_ms": 7})


def logits(model: MTGR) -> torch.Tensor:
    """Of random logs."""
    batch = joined(list(training_samples(random_logs(1))), SCHEMA).batch
    with torch.inference_mode():
        return model(to_tensors(batch))


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A loaded checkpoint scores bit for bit as the saved one, and knows what was said of it."""
    save(tmp_path / "m", checkpoint)
    loaded = load(tmp_path / "m")
    assert torch.equal(logits(loaded.model), logits(checkpoint.model))
    assert loaded.config == checkpoint.config
    assert loaded.training == checkpoint.training
    assert np.array_equal(loaded.id_tables["item_id"].ids, checkpoint.id_tables["item_id"].ids)


def test_saving_replaces_whole_or_not_at_all(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that fails half-way leaves the old checkpoint as it was, and nothing else."""
    save(tmp_path / "m", checkpoint)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "m", checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    load(tmp_path / "m")
    monkeypatch.undo()
    save(tmp_path / "m", checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_nothing_else_is_overwritten(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A directory that is no checkpoint is not replaced."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        save(tmp_path, checkpoint)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "id_tables.npz"])
def test_missing_file_is_named(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    """A checkpoint without one of its files is refused by that file's name."""
    save(tmp_path / "m", checkpoint)
    (tmp_path / "m" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path / "m")


def test_weights_of_another_model_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Weights that do not fit config.json are refused, and what differs is listed."""
    save(tmp_path / "m", checkpoint)
    path = tmp_path / "m" / "weights.safetensors"
    tensors = load_file(path)
    del tensors["layers.0.out_bias"]
    tensors["layers.9.out_bias"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"(?s)layers\.0\.out_bias.*layers\.9\.out_bias"):
        load(tmp_path / "m")
