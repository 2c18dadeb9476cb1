"""The served model over an engine that also takes requests as they came, without a GPU.

What it runs so it answers with 1 - p, for a test to see which way a request went.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine_build.runtime.engine import Engine, Scores
from engine_build.runtime.packed import packed_batch
from engine_build.runtime.tensors import TensorError
from engine_build.triton.python_model import TritonPythonModel as Served
from model_def.batch import merge
from model_def.schema import FeatureSchema


class Packed:
    """Runs requests as they came by an engine that does not; refuses them as the real one does."""

    def __init__(self, engine: Engine, schema: FeatureSchema):
        self._engine, self._schema = engine, schema

    def run_packed(self, requests: Sequence[NDArray[np.uint8]]) -> Scores | None:
        """1 - p, or None where a request is malformed."""
        try:
            batches = [packed_batch(self._schema, request) for request in requests]
        except TensorError:
            return None
        scores = self._engine.run(merge(batches, self._schema)).tasks
        return Scores({task: 1 - values for task, values in scores.items()})


class TritonPythonModel(Served):
    """The served model, its engine wrapped."""

    def initialize(self, args: dict[str, str]) -> None:
        """As the served one."""
        super().initialize(args)
        self._runs_packed = Packed(self._engine, self._schema)  # type: ignore[assignment]  # its engine cannot
