"""What an import learns of the values and then freezes: category codes and number bins.

Learned before `train_until`, saved as `vocabulary.json` beside the logs (the bins are in their
schema), and reused by a later import of newer rows, so that a code keeps its meaning.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_def.data.mapping import MappingError
from model_def.schema import Log1p, Piecewise, Transform


class Vocabulary:
    """Codes of category values by `<group>.<feature>`: the i-th listed value is i + 1."""

    def __init__(self, values: dict[str, list[str]] | None = None):
        self.values = values if values is not None else {}

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Read what `write` wrote."""
        try:
            return cls(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise MappingError(
                f"{path}: expected an earlier import's vocabulary ({error})"
            ) from None

    def write(self, path: Path) -> None:
        """Save as JSON: lists of values by feature, in the order of their codes."""
        path.write_text(json.dumps(self.values, indent=1, ensure_ascii=False) + "\n")

    def encode(
        self, name: str, texts: NDArray[np.str_], most: int, learn_from: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Codes of `texts`; unless already frozen, learn the `most` frequent of `learn_from`."""
        if name not in self.values:
            counts = Counter(texts[learn_from].tolist())
            del counts[""]
            ranked = sorted(counts, key=lambda value: (-counts[value], value))
            self.values[name] = ranked[:most]
        codes = {value: code for code, value in enumerate(self.values[name], start=1)}
        unique, inverse = np.unique(texts, return_inverse=True)
        coded = [codes.get(text, 0) for text in unique.tolist()]
        return np.array(coded, np.int64)[inverse]

    def size(self, name: str) -> int:
        """Codes of a feature, 0 included."""
        return len(self.values[name]) + 1


def learn_bins(values: NDArray[np.floating], bins: int) -> Transform:
    """Piecewise-linear edges at quantiles of `values`.

    The most frequent value (a count's 0, a recency's never) is an edge of its own and left out of
    the quantiles, which it would otherwise take most of. Too few distinct values: log1p.
    """
    distinct, counts = np.unique(values.astype(np.float64), return_counts=True)
    if len(distinct) < 2:
        return Log1p()
    common = distinct[counts.argmax()]
    rest = values[values != common].astype(np.float64)
    quantiles = np.quantile(rest, np.linspace(0, 1, bins), method="nearest")
    # Float32 steps: edges nearer than that would be one after the record's rounding.
    edges = np.unique(np.append(quantiles, common).astype(np.float32))
    return Piecewise(edges=tuple(edges.tolist()))
