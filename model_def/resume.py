"""The state of a training on disk, so that a killed one continues to the same weights.

Beside a checkpoint OUT, OUT.training holds state.pt (the last save, whole or not there) and
curves.csv, until the training ends. A state is of one training: equal model, features, options
and samples.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_def.checkpoint import CheckpointError
from model_def.config import ModelConfig
from model_def.data.samples import TrainingSample
from model_def.differences import differences
from model_def.options import TrainingOptions
from model_def.schema import FeatureSchema

STATE = "state.pt"


class TrainingState:
    """Saves and loads one training's state; `every` is how many steps lie between saves."""

    def __init__(self, directory: Path, every: int, identity: dict[str, Any]):
        self.directory, self.every, self._identity = directory, every, identity
        directory.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The last saved state, or None; raises CheckpointError for one of another training."""
        path = self.directory / STATE
        if not path.is_file():
            return None
        try:
            saved: dict[str, Any] = torch.load(path, weights_only=True)
            identity = json.loads(saved["identity"])
        except Exception as error:  # whatever pickle and zip raise for bytes that are neither
            raise CheckpointError(f"{path}: not a training's state ({error}); remove it") from error
        if differing := list(differences(identity, self._identity)):
            raise CheckpointError(
                f"{path}: of another training; remove {self.directory} to begin anew, or go on "
                "with what it was begun with:\n  " + "\n  ".join(differing)
            )
        return saved

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state, whole or not at all."""
        path = self.directory / STATE
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save({**state, "identity": json.dumps(self._identity)}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def identity_of(
    config: ModelConfig,
    schema: FeatureSchema,
    options: TrainingOptions,
    samples: Sequence[TrainingSample],
    labels: NDArray[np.float32],
) -> dict[str, Any]:
    """What two trainings share that end in the same weights, as JSON."""
    digest = hashlib.blake2b(labels.tobytes(), digest_size=16)
    for sample in samples:
        digest.update(sample.batch.buffer.data)
        digest.update(sample.rows.tobytes())
    return {
        "model": config.model_dump(mode="json"),
        "features": schema.model_dump(mode="json"),
        "options": options.model_dump(mode="json"),
        "samples": {"count": len(samples), "hash": digest.hexdigest()},
        "threads": torch.get_num_threads(),
    }
