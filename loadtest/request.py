"""One request as it goes over the wire, and what a right answer to it looks like."""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Format = Literal["json-rows", "json-columns", "msgpack"]
FORMATS: tuple[Format, ...] = ("json-rows", "json-columns", "msgpack")
JSON, MSGPACK = "application/json", "application/msgpack"


@dataclass(frozen=True, slots=True)
class Request:
    """Bytes to POST, and the answer they deserve."""

    kind: str
    """A fixed word: `rank json-rows`, `events`, or `bad <mistake>`."""
    path: str
    content_type: str
    body: bytes
    deadline_ms: float | None = None
    """Patience, from the moment the request was due; None: of no concern."""
    status: int = 200
    """HTTP status of a right answer."""
    request_id: str | None = None
    items: int | None = None
    """Length of the list in a right answer."""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Candidates:
    """K candidates in columns."""

    item_id: NDArray[np.int64]
    recall_score: NDArray[np.float32]
    features: dict[str, NDArray[Any]]
    """[K] by name: int64, or float32 for numbers."""

    def take(self, rows: NDArray[np.int64]) -> "Candidates":
        """The candidates at `rows`."""
        features = {name: column[rows] for name, column in self.features.items()}
        return Candidates(self.item_id[rows], self.recall_score[rows], features)


def rank_body(head: dict[str, Any], candidates: Candidates, format: Format) -> tuple[str, bytes]:
    """Content type and bytes of `POST /v1/rank`; `head` is everything but the candidates."""
    if format == "msgpack":
        columns: Any = {
            "item_id": _binary(candidates.item_id, "<i8"),
            "recall_score": _binary(candidates.recall_score, "<f4"),
            "features": {name: _binary(c, _dtype(c)) for name, c in candidates.features.items()},
        }
        return MSGPACK, msgspec.msgpack.encode({**head, "candidates": columns})
    columns = {
        "item_id": candidates.item_id.tolist(),
        "recall_score": _decimals(candidates.recall_score),
        "features": {name: _decimals(c) for name, c in candidates.features.items()},
    }
    if format == "json-columns":
        return JSON, msgspec.json.encode({**head, "candidates": columns})
    rows = [
        {
            "item_id": item,
            "recall_score": columns["recall_score"][i],
            "features": {name: column[i] for name, column in columns["features"].items()},
        }
        for i, item in enumerate(columns["item_id"])
    ]
    return JSON, msgspec.json.encode({**head, "candidates": rows})


def _decimals(column: NDArray[Any]) -> list[Any]:
    """Numbers as a caller writes them: four decimals."""
    if column.dtype.kind == "f":
        return [round(value, 4) for value in column.tolist()]
    return list(column.tolist())


def _dtype(column: NDArray[Any]) -> str:
    """The smallest dtype that MessagePack columns may have and that holds the values."""
    if column.dtype.kind == "f":
        return "<f4"
    low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
    if low >= 0 and high < 1 << 8:
        return "u1"
    return "<i4" if low >= -(1 << 31) and high < 1 << 31 else "<i8"


def _binary(column: NDArray[Any], dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "data": column.astype(dtype).tobytes()}
