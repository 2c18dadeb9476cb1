"""The seam behind which every engine kind stands: a packed batch in, scores out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model_def.batch import PackedBatch


class EngineError(Exception):
    """An engine that cannot be loaded or trusted. The message names the cause and the fix."""


@dataclass(frozen=True)
class Scores:
    """Probability of each task, float32 [T_c], in the batch's order of candidates."""

    tasks: Mapping[str, NDArray[np.float32]]


class Engine(Protocol):
    """A loaded engine of one kind. `run` is safe to call from several threads."""

    kind: str

    def run(self, batch: PackedBatch) -> Scores:
        """Scores of every candidate row of a batch of any number of requests."""
        ...
