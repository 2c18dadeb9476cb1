"""A trained model on disk: what it is, its weights, and its id tables' keys.

config.json           PackageConfig: version, model, features
weights.safetensors   every parameter by name
id_tables.npz         int64 ids by table name; id i has embedding row i + 1
training.json         how it was trained and what it measured; nothing reads it to score
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from model_def.config import PackageConfig
from model_def.id_table import IdTable
from model_def.model import MTGR


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and what was expected."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that made it. `training` is its `training.json`."""

    config: PackageConfig
    model: MTGR
    id_tables: Mapping[str, IdTable]
    training: Mapping[str, Any]


def save(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all, in place of one that was there.

    A reader sees the old one, the new one, or for an instant none, never a mixture. Raises
    CheckpointError rather than replace a directory that holds something else.
    """
    check_replaceable(directory)
    partial = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        (partial / "config.json").write_text(checkpoint.config.model_dump_json(indent=1) + "\n")
        weights = {name: t.contiguous() for name, t in checkpoint.model.state_dict().items()}
        # Not save_file, which makes a file that its owner alone may read.
        (partial / "weights.safetensors").write_bytes(to_bytes(weights))
        ids: dict[str, Any] = {name: table.ids for name, table in checkpoint.id_tables.items()}
        np.savez(partial / "id_tables.npz", **ids)
        text = json.dumps(dict(checkpoint.training), indent=1)
        (partial / "training.json").write_text(text + "\n")
        for path in partial.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        if directory.exists():
            replaced = directory.with_name(f"{directory.name}.replaced-{os.getpid()}")
            directory.rename(replaced)
            partial.rename(directory)
            shutil.rmtree(replaced)
        else:
            partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_replaceable(directory: Path) -> None:
    """Raise CheckpointError if `directory` holds something that is not a checkpoint."""
    if directory.exists() and not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory}: exists and is not a checkpoint; not overwritten")


def load(directory: Path) -> Checkpoint:
    """Read a checkpoint back; raises CheckpointError."""
    config = PackageConfig.model_validate_json(_text(directory / "config.json"))
    training = json.loads(_text(directory / "training.json"))
    path = directory / "id_tables.npz"
    try:
        with np.load(path) as arrays:
            id_tables = {name: IdTable(arrays[name].tolist()) for name in arrays.files}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if missing := set(config.features.id_tables) - set(id_tables):
        raise CheckpointError(f"{path}: lacks the id tables {sorted(missing)} of config.json")
    model = MTGR(config.model, config.features, id_tables)
    path = directory / "weights.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(config, model, id_tables, training)


def _text(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"{path}: not found; expected a checkpoint directory")
    return path.read_text()
