"""The seam behind which every engine kind stands: a packed batch in, scores out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class RunsPacked(Protocol):
    """An engine that can also take requests as they crossed, see `packed.py`."""

    def run_packed(self, requests: Sequence[NDArray[np.uint8]]) -> Scores | None:
        """Scores of every candidate row of the requests, in order; None where `run` has to look at
        them: one may be malformed. Raises TensorError for one that is too short to say."""
        ...
