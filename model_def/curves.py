"""Training curves, measured off the critical path: a step hands its outputs over and goes on.

curves.csv    a row for every WINDOW steps (fewer before a save)
    step, exposures, rate, loss    the last step, its window's rows, learning rate, mean loss
    auc_<task>, ne_<task>          of the window's predictions, each made before it was learnt from
"""

import csv
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from model_def.metrics import auc, normalized_entropy
from model_def.trainer import StepResult

FILE = "curves.csv"

WINDOW = 25
"""Steps of a row: fewer, and rare orders make the AUC a noise."""

WAITING = 64
"""Steps that may wait to be measured before training waits for them."""

Progress = Callable[[int, float], object]
"""Told of each step's number, from 1, and its loss."""


class Curves:
    """Measures steps in a thread of its own. `losses` are complete after `flush`."""

    def __init__(
        self,
        tasks: Sequence[str],
        directory: Path | None = None,
        losses: Sequence[float] = (),
        progress: Progress | None = None,
    ):
        """Writes to `directory`, if any, after the rows of the steps that `losses` are of."""
        self.losses = list(losses)
        self._tasks, self._progress = tasks, progress
        self._path = None if directory is None else directory / FILE
        self._window: list[tuple[float, StepResult]] = []
        self._pending: deque[Future[None]] = deque()
        self._worker = ThreadPoolExecutor(1, "curves")
        if self._path is not None:
            self._continue(self._path, len(self.losses))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.shutdown()

    def add(self, rate: float, result: StepResult) -> None:
        """Hand over the next step's outputs."""
        self._submit(lambda: self._measure(rate, result))
        if len(self._pending) > WAITING:
            self._pending.popleft().result()

    def flush(self) -> None:
        """Wait until all steps are measured and end the window; raises what measuring raised."""
        self._submit(self._write)
        while self._pending:
            self._pending.popleft().result()

    def _submit(self, job: Callable[[], None]) -> None:
        self._pending.append(self._worker.submit(job))

    def _measure(self, rate: float, result: StepResult) -> None:
        self.losses.append(result.loss.item())
        self._window.append((rate, result))
        if self._progress:
            self._progress(len(self.losses), self.losses[-1])
        if len(self._window) == WINDOW:
            self._write()

    def _write(self) -> None:
        window, self._window = self._window, []
        if self._path is None or not window:
            return
        probabilities = torch.cat([step.logits for _, step in window]).float().sigmoid().cpu()
        labels = torch.cat([step.labels for _, step in window]).cpu().numpy()
        mean_loss = float(np.mean(self.losses[-len(window) :]))
        row = [len(self.losses), len(labels), f"{window[-1][0]:.3g}", f"{mean_loss:.6f}"]
        for label, probability in zip(labels.T, probabilities.numpy().T, strict=True):
            known = ~np.isnan(label)
            for metric in (auc, normalized_entropy):
                row.append(f"{metric(label[known], probability[known]):.5f}")
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerow(row)

    def _continue(self, path: Path, step: int) -> None:
        """Keep the rows up to `step`: later ones are of steps that will be taken again."""
        head = ["step", "exposures", "rate", "loss"]
        head += [f"{metric}_{task}" for task in self._tasks for metric in ("auc", "ne")]
        kept: list[list[str]] = []
        if step and path.is_file():
            with path.open(newline="") as file:
                # A killed writer may have left half a row at the end.
                rows = [row for row in csv.reader(file) if len(row) == len(head)]
            kept = [row for row in rows[1:] if int(row[0]) <= step]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([head, *kept])


def read_curves(path: Path) -> dict[str, list[float]]:
    """Columns of a curves.csv by name."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
