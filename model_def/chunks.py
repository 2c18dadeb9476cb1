"""A growing array in chunks: growth allocates new rows and never moves old ones. NumPy only."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CHUNK_ROWS = 1 << 16


class Chunks:
    """Rows of one dtype and shape, zero at first, read and written by row number."""

    def __init__(self, dtype: DTypeLike, shape: tuple[int, ...] = ()):
        self._dtype, self._shape = np.dtype(dtype), shape
        self._chunks: list[NDArray[Any]] = []

    def reserve(self, rows: int) -> None:
        """Make room for rows 0 .. rows - 1."""
        while len(self._chunks) * CHUNK_ROWS < rows:
            self._chunks.append(np.zeros((CHUNK_ROWS, *self._shape), self._dtype))

    def take(self, rows: NDArray[Any]) -> NDArray[Any]:
        """[N, *shape]: a copy of the given rows."""
        out = np.empty((len(rows), *self._shape), self._dtype)
        for chunk, at, inside in self._parts(rows):
            out[at] = chunk[inside]
        return out

    def put(self, rows: NDArray[Any], values: NDArray[Any]) -> None:
        """Write the given rows, each once."""
        for chunk, at, inside in self._parts(rows):
            chunk[inside] = values[at]

    def _parts(self, rows: NDArray[Any]) -> Iterator[tuple[NDArray[Any], Any, NDArray[Any]]]:
        """(chunk, which of `rows` lie in it, their places inside)."""
        if len(self._chunks) == 1:
            yield self._chunks[0], slice(None), rows
            return
        of = (rows // CHUNK_ROWS).astype(np.int16)
        order = np.argsort(of, kind="stable")
        bounds = np.searchsorted(of[order], np.arange(len(self._chunks) + 1))
        for number, chunk in enumerate(self._chunks):
            at = order[bounds[number] : bounds[number + 1]]
            if len(at):
                yield chunk, at, rows[at] % CHUNK_ROWS
