"""Triton's Python-backend model of the engine kinds that Triton has no backend for.

Its version folder is a model package with `model.py` beside the engine. All requests that the
scheduler hands over become one ragged batch, and each gets its own scores back; one that is
malformed is answered alone. Runs inside Triton's interpreter only.
"""

import ctypes
import gc
import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from engine_build.runtime.manifest import EngineKind
from engine_build.runtime.package import open_package
from engine_build.runtime.packed import PACKED, packed_batch
from engine_build.runtime.tensors import TensorError, request_batch
from model_def.batch import PackedBatch, merge

Request = Any
Response = Any


class TritonPythonModel:
    """An engine of a package; the configuration's parameters say which, and its threads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the package and load the engine, hashes and golden requests checked; what it
        raises is what Triton answers to the load."""
        parameters = json.loads(args["model_config"])["parameters"]
        package = open_package(Path(args["model_repository"]) / args["model_version"])
        kind = cast(EngineKind, parameters["engine"]["string_value"])
        self._engine = package.load_engine(kind, int(parameters["threads"]["string_value"]))
        self._schema = package.config.features
        self._tasks = package.config.model.tasks
        self._max_candidates = int(parameters["max_candidates"]["string_value"])
        # What is loaded stays: looking through it for garbage would stall a request.
        gc.collect()
        gc.freeze()

    def execute(self, requests: Sequence[Request]) -> list[Response]:
        """One response a request, in their order."""
        responses: dict[int, Response] = {}
        accepted: dict[int, PackedBatch] = {}
        for number, request in enumerate(requests):
            try:
                accepted[number] = self._read(request)
            except TensorError as error:
                responses[number] = _failure(str(error))
        if accepted:
            responses.update(zip(accepted, self._score([*accepted.values()]), strict=True))
        return [responses[number] for number in range(len(requests))]

    def _read(self, request: Request) -> PackedBatch:
        # By DLPack, since as_numpy() assumes NumPy 1's arrays. A request's tensors are [1, n].
        tensors: dict[str, NDArray[Any]] = {
            t.name(): np.from_dlpack(t).reshape(-1) for t in request.inputs()
        }
        packed = tensors.get(PACKED)
        batch = (
            request_batch(self._schema, tensors)
            if packed is None
            else packed_batch(self._schema, packed)
        )
        if batch.candidates > self._max_candidates:
            raise TensorError(
                f"{batch.candidates} candidates; this model's most is {self._max_candidates}"
            )
        return batch

    def _score(self, batches: list[PackedBatch]) -> list[Response]:
        scores = self._engine.run(merge(batches, self._schema)).tasks
        ends = [*accumulate(batch.candidates for batch in batches)]
        return [
            pb_utils.InferenceResponse([_tensor(t, scores[t][start:end]) for t in self._tasks])
            for start, end in pairwise([0, *ends])
        ]


def _tensor(name: str, values: NDArray[np.float32]) -> Any:
    """The output [1, K] from values [K].

    By DLPack again. Triton renames a consumed capsule to a name that NumPy does not know, and each
    would write a traceback to the log when it is freed; the standard's name for it keeps quiet.
    """
    capsule = values.reshape(1, -1).__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _rename(capsule, CONSUMED)
    return tensor


CONSUMED = b"used_dltensor"
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _failure(message: str) -> Response:
    error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=error)
