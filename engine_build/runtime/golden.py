"""Golden requests: packed batches and the scores that PyTorch gave them, replayed by engines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_build.runtime.engine import Engine, EngineError, Scores
from model_def.batch import PackedBatch, from_arrays, merge
from model_def.schema import FeatureSchema


class ParityError(EngineError):
    """An engine whose scores differ from PyTorch's by more than its tolerance."""


@dataclass(frozen=True)
class Golden:
    """One packed request and its probabilities by task, float32 [T_c]."""

    request: PackedBatch
    scores: Mapping[str, NDArray[np.float32]]


def save_golden(path: Path, golden: Sequence[Golden]) -> None:
    """Write golden requests as one .npz: `<request>/<array>` and `<request>/score/<task>`."""
    arrays: dict[str, Any] = {}
    for number, item in enumerate(golden):
        arrays |= {f"{number}/{name}": array for name, array in item.request.arrays.items()}
        arrays |= {f"{number}/{_SCORE}{task}": array for task, array in item.scores.items()}
    np.savez_compressed(path, **arrays)


def load_golden(path: Path, schema: FeatureSchema) -> tuple[Golden, ...]:
    """Read golden requests back; `path` is trusted, its hash having been checked."""
    requests: dict[int, dict[str, NDArray[Any]]] = {}
    with np.load(path) as file:
        for key in file.files:
            number, name = key.split("/", 1)
            requests.setdefault(int(number), {})[name] = file[key]
    return tuple(
        Golden(
            from_arrays(schema, arrays),
            {n.removeprefix(_SCORE): a for n, a in arrays.items() if n.startswith(_SCORE)},
        )
        for arrays in requests.values()
    )


_SCORE = "score/"


def largest_difference(scores: Scores, expected: Mapping[str, NDArray[np.float32]]) -> float:
    """Largest absolute difference over tasks and candidates; infinite if shapes differ or a
    score is not a number."""
    largest = 0.0
    for task, values in expected.items():
        given = scores.tasks.get(task)
        if given is None or given.shape != values.shape or not np.isfinite(given).all():
            return float("inf")
        largest = max(largest, float(np.abs(given - values).max(initial=0.0)))
    return largest


def replay(engine: Engine, golden: Sequence[Golden], schema: FeatureSchema) -> float:
    """Largest difference of an engine over each golden request alone, then all in one batch."""
    batches = [item.request for item in golden]
    together = {
        task: np.concatenate([item.scores[task] for item in golden]) for task in golden[0].scores
    }
    differences = [largest_difference(engine.run(g.request), g.scores) for g in golden]
    differences.append(largest_difference(engine.run(merge(batches, schema)), together))
    return max(differences)


def require_parity(
    engine: Engine, golden: Sequence[Golden], schema: FeatureSchema, tolerance: float
) -> float:
    """The largest difference; raises ParityError if it is above `tolerance`."""
    difference = replay(engine, golden, schema)
    if not difference <= tolerance:
        raise ParityError(
            f"{engine.kind}: scores differ from PyTorch's by {difference:.2g}, more than "
            f"{tolerance:g}; refused. Build the engine again, or 'mtgr verify' the package"
        )
    return difference
