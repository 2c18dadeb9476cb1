"""A trained model on disk: what it is, its weights, and its id tables' keys.

config.json           PackageConfig: version, model, features
weights.safetensors   every parameter by name
id_tables.npz         int64 ids by table name; id i has embedding row i + 1
training.json         how it was trained and what it measured; nothing reads it to score
id_uses.npz           metadata of each id (`growing_table.USE`) by table name, for pruning
curves.csv            the training's curves, where it kept any
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
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
    """A model with all that made it. `training` is its `training.json`; `uses` the metadata of
    its ids, in their order, where it was not pruned yet."""

    config: PackageConfig
    model: MTGR
    id_tables: Mapping[str, IdTable]
    training: Mapping[str, Any]
    uses: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def save(directory: Path, checkpoint: Checkpoint, curves: Path | None = None) -> None:
    """Write a checkpoint, with the file `curves`, whole or not at all in place of an older one.

    A reader sees the old one, the new one, or for an instant none, never a mixture. Raises
    CheckpointError rather than replace a directory that holds something else.
    """
    check_replaceable(directory)
    _remove_left_over(directory)
    partial = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        (partial / "config.json").write_text(checkpoint.config.model_dump_json(indent=1) + "\n")
        weights = {name: t.contiguous() for name, t in checkpoint.model.state_dict().items()}
        # Not save_file, which makes a file that its owner alone may read.
        (partial / "weights.safetensors").write_bytes(to_bytes(weights))
        ids: dict[str, Any] = {name: table.ids for name, table in checkpoint.id_tables.items()}
        np.savez(partial / "id_tables.npz", **ids)
        if checkpoint.uses:
            uses: dict[str, Any] = dict(checkpoint.uses)
            np.savez(partial / "id_uses.npz", **uses)
        if curves is not None:
            shutil.copyfile(curves, partial / curves.name)
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
            id_tables = {name: IdTable(arrays[name]) for name in arrays.files}
        uses = _uses(directory / "id_uses.npz")
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
    return Checkpoint(config, model, id_tables, training, uses)


def _uses(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _remove_left_over(directory: Path) -> None:
    """What savers left behind that were killed."""
    for path in directory.parent.glob(f"{directory.name}.*-*"):
        what, _, process = path.suffix.removeprefix(".").rpartition("-")
        if what in ("partial", "replaced") and process.isdecimal():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                shutil.rmtree(path)
            except PermissionError:  # another user's process has the number now: not ours to judge
                continue


def _text(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"{path}: not found; expected a checkpoint directory")
    return path.read_text()
