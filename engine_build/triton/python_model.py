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

from engine_build.runtime.engine import RunsPacked, Scores
from engine_build.runtime.manifest import EngineKind
from engine_build.runtime.package import open_package
from engine_build.runtime.packed import PACKED, packed_batch, row_counts
from engine_build.runtime.tensors import TensorError, request_batch
from model_def.batch import PackedBatch, merge

Request = Any
Response = Any
Tensors = dict[str, NDArray[Any]]


class TritonPythonModel:
    """An engine of a package; the configuration's parameters say which, and its threads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the package and load the engine, hashes and golden requests checked; what it
        raises is what Triton answers to the load."""
        parameters = json.loads(args["model_config"])["parameters"]
        package = open_package(Path(args["model_repository"]) / args["model_version"])
        kind = cast(EngineKind, parameters["engine"]["string_value"])
        self._engine = package.load_engine(kind, int(parameters["threads"]["string_value"]))
        self._runs_packed = self._engine if isinstance(self._engine, RunsPacked) else None
        self._schema = package.config.features
        self._tasks = package.config.model.tasks
        self._max_candidates = int(parameters["max_candidates"]["string_value"])
        # What is loaded stays: looking through it for garbage would stall a request.
        gc.collect()
        gc.freeze()

    def execute(self, requests: Sequence[Request]) -> list[Response]:
        """One response a request, in their order."""
        given = [_tensors(request) for request in requests]
        whole = self._run_packed(given)
        if whole is not None:
            return whole
        responses: dict[int, Response] = {}
        accepted: dict[int, PackedBatch] = {}
        for number, tensors in enumerate(given):
            try:
                accepted[number] = self._read(tensors)
            except TensorError as error:
                responses[number] = _failure(str(error))
        if accepted:
            batches = [*accepted.values()]
            scores = self._engine.run(merge(batches, self._schema))
            answers = self._responses(scores, [batch.candidates for batch in batches])
            responses.update(zip(accepted, answers, strict=True))
        return [responses[number] for number in range(len(requests))]

    def _run_packed(self, given: Sequence[Tensors]) -> list[Response] | None:
        """The responses to requests that the engine takes as they came; None where one is not
        such, or may be malformed."""
        packed = [tensors[PACKED] for tensors in given if PACKED in tensors]
        if self._runs_packed is None or len(packed) < len(given):
            return None
        try:
            candidates = [row_counts(tensor)[2] for tensor in packed]
        except TensorError:
            return None
        if max(candidates) > self._max_candidates:
            return None
        scores = self._runs_packed.run_packed(packed)
        return None if scores is None else self._responses(scores, candidates)

    def _read(self, tensors: Tensors) -> PackedBatch:
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

    def _responses(self, scores: Scores, candidates: Sequence[int]) -> list[Response]:
        """Each request's own scores, of so many candidates."""
        tasks = scores.tasks
        return [
            pb_utils.InferenceResponse([_tensor(t, tasks[t][start:end]) for t in self._tasks])
            for start, end in pairwise([0, *accumulate(candidates)])
        ]


def _tensors(request: Request) -> Tensors:
    """By DLPack, since as_numpy() assumes NumPy 1's arrays. A request's tensors are [1, n]."""
    return {t.name(): np.from_dlpack(t).reshape(-1) for t in request.inputs()}


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
