"""Rows that could not be used: counted by reason, listed in a file, never silently dropped."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WHOLE_FILE = -1
"""In place of a row: the file as a whole."""


class Rejects:
    """Collects (file, row, reason); rows are numbered from 0 within their file."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, str, NDArray[np.int64]]] = []

    def add(self, file: str, reason: str, rows: NDArray[np.int64]) -> None:
        """Set `rows` of `file` aside for one reason."""
        if len(rows):
            self._parts.append((file, reason, rows))

    def __len__(self) -> int:
        return sum(len(rows) for _, _, rows in self._parts)

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """Rows by (file, reason)."""
        counter: Counter[tuple[str, str]] = Counter()
        for file, reason, rows in self._parts:
            counter[file, reason] += len(rows)
        return counter

    def write(self, path: Path) -> None:
        """Write every reject as CSV: file, row, reason."""
        with path.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(("file", "row", "reason"))
            for file, reason, rows in self._parts:
                writer.writerows((file, row, reason) for row in rows.tolist())
