"""Embeddings gathered before the engine, for tables larger than its memory (`embedding_source`
"host"). NumPy only; the tables are mapped from disk, so rows that nobody asks for cost nothing.

    keys_<table>.npy, rows_<table>.npy   the frozen key store (`model_def.id_table`)
    values_<name>.npy                    float32 [rows, width] of an id table or a category
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_build.runtime.manifest import PackageError
from model_def.batch import PackedBatch
from model_def.id_table import MAX_PROBE, FrozenIdTable
from model_def.schema import CategoryFeature, FeatureSchema, IdFeature

SEGMENTS = ("profile", "context", "lifelong", "realtime", "candidate")


class HostEmbeddings:
    """A batch's ids and categories -> the vectors that the engine takes in their place."""

    def __init__(self, directory: Path, schema: FeatureSchema):
        """Map the files of `directory`; raises PackageError for one that is missing."""
        self._schema = schema
        self._tables = {
            name: FrozenIdTable(
                _mapped(directory / f"keys_{name}.npy"),
                _mapped(directory / f"rows_{name}.npy"),
                MAX_PROBE,
            )
            for name in schema.id_tables
        }
        self._values = {
            feature.values_name: _mapped(directory / f"values_{feature.values_name}.npy")
            for layout in schema.layouts.values()
            for feature in (*layout.ids, *layout.categories)
        }

    def __call__(self, batch: PackedBatch) -> dict[str, NDArray[Any]]:
        """The batch's arrays by name, with `<segment>_vectors` [rows, n * width] for its ids and
        categories, in the order of its layout's ids, then categories."""
        arrays = dict(batch.arrays)
        for segment in SEGMENTS:
            layout, vectors = self._schema.layouts[segment], []
            for carrier, features in (("ids", layout.ids), ("categories", layout.categories)):
                if features:
                    columns = arrays.pop(f"{segment}_{carrier}").reshape(-1, len(features))
                    vectors += [self._rows(f, columns[:, i]) for i, f in enumerate(features)]
            if vectors:
                arrays[f"{segment}_vectors"] = np.concatenate(vectors, 1)
        return arrays

    def _rows(
        self, feature: IdFeature | CategoryFeature, column: NDArray[Any]
    ) -> NDArray[np.float32]:
        rows = column
        if isinstance(feature, IdFeature):
            rows = self._tables[feature.table].find(column)
        return np.asarray(self._values[feature.values_name][rows])


def write_tables(
    directory: Path, tables: Mapping[str, FrozenIdTable], values: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write what `HostEmbeddings` maps; `values` go by the features' `values_name`."""
    for name, table in tables.items():
        np.save(directory / f"keys_{name}.npy", table.keys)
        np.save(directory / f"rows_{name}.npy", table.rows)
    for name, rows in values.items():
        np.save(directory / f"values_{name}.npy", rows)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: cannot be read ({error}); build the package again") from error
    return mapped
