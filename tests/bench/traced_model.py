"""Triton's Python-backend model with a stopwatch, or with an engine that costs nothing.

It writes a line of JSON for each request when it ends: its id, the requests in its run, and the
moments of that run on the monotonic clock, which all processes of a machine share.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np

from engine_build.runtime.engine import RunsPacked, Scores
from engine_build.runtime.package import open_package
from engine_build.runtime.staging import Staging
from engine_build.triton.python_model import TritonPythonModel as Served
from model_def.batch import PackedBatch

FILE, AT_ONCE = Path("traced"), False
"""Where to write, and whether the engine shall answer at once; `model.py` sets them."""

MOMENTS: dict[str, int] = {}


class TritonPythonModel(Served):
    """The served model, its moments noted."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine, then put the stopwatch into it."""
        super().initialize(args)
        self._known: dict[int, Scores] = {}
        self._lines: list[tuple[str, int, dict[str, int]]] = []
        if AT_ONCE:
            # What a gateway compares before it serves, it is told.
            folder = Path(args["model_repository"]) / args["model_version"]
            for golden in open_package(folder).golden:
                self._known[golden.request.candidates] = Scores(golden.scores)
            self._engine.run = self._at_once  # type: ignore[method-assign]  # in its place
            if isinstance(self._engine, RunsPacked):
                self._engine.run_packed = lambda requests: None  # type: ignore[method-assign]  # the same
        elif isinstance(self._engine, RunsPacked):
            Staging.__call__ = noted("staged", Staging.__call__)  # type: ignore[method-assign]  # watched
            self._engine.run_packed = noted("engine ends", self._engine.run_packed, "engine begins")
        self._engine.run = noted("engine ends", self._engine.run, "engine begins")  # type: ignore[method-assign]  # the same

    def _at_once(self, batch: PackedBatch) -> Scores:
        known = self._known.get(batch.candidates)
        if known is None:
            nothing = np.zeros(batch.candidates, np.float32)
            known = self._known[batch.candidates] = Scores(dict.fromkeys(self._tasks, nothing))
        return known

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """The served model's answers."""
        MOMENTS.clear()
        MOMENTS["execute begins"] = monotonic_ns()
        responses = super().execute(requests)
        MOMENTS["execute ends"] = monotonic_ns()
        self._lines += [(r.request_id(), len(requests), dict(MOMENTS)) for r in requests]
        return responses

    def finalize(self) -> None:
        """Triton unloads the model: write what was seen."""
        FILE.write_text("".join(json.dumps(line) + "\n" for line in self._lines))


def noted(after: str, call: Callable[..., Any], before: str = "") -> Callable[..., Any]:
    """The call, with its end, and its beginning if named, noted."""

    def watched(*args: Any, **more: Any) -> Any:
        if before:
            MOMENTS[before] = monotonic_ns()
        result = call(*args, **more)
        MOMENTS[after] = monotonic_ns()
        return result

    return watched
