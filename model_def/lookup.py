"""The growing tables of a model in training: ids of a step -> distinct vectors -> their updates.

Each distinct id of a step is looked up once, however many batches the step is split into; the
model reads its vector by place. Only the distinct vectors cross to a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model_def.batch import PackedBatch
from model_def.data.samples import TrainingSample
from model_def.growing_table import Admission, Found, GrowingTable, State
from model_def.id_table import IdTable
from model_def.model import MTGR, to_tensors
from model_def.schema import FeatureSchema, IdFeature
from model_def.tokens import SEGMENTS


@dataclass(frozen=True)
class StepVectors:
    """What a step reads: each batch's tensors, whose ids are places in `vectors` [U, width]."""

    batches: list[dict[str, Tensor]]
    vectors: dict[str, Tensor]
    found: dict[str, Found]


class GrowingTables:
    """A `GrowingTable` for each id table of a schema."""

    def __init__(
        self, schema: FeatureSchema, width: int, std: float, seed: int, admission: Admission
    ):
        self._columns = {name: _columns(schema, name) for name in schema.id_tables}
        self._tables = {
            name: GrowingTable(width, std, seed + position, admission)
            for position, name in enumerate(schema.id_tables)
        }

    def look_up(
        self, samples: Sequence[TrainingSample], device: torch.device, *, admit: bool
    ) -> StepVectors:
        """Vectors of all ids of a step's batches; `admit` counts them and lets new ones in."""
        at_ms = max(sample.at_ms for sample in samples) if admit else None
        copies = [_copied_ids(sample.batch) for sample in samples]
        vectors, found = {}, {}
        for name, columns in self._columns.items():
            views = [
                ids[f"{segment}_ids"].reshape(-1, width)[:, at]
                for ids in copies
                for segment, width, at in columns
            ]
            found[name] = self._tables[name].look_up(np.concatenate(views), at_ms)
            ends = np.cumsum([len(view) for view in views])[:-1]
            for view, places in zip(views, np.split(found[name].places, ends), strict=True):
                view[:] = places
            values = torch.from_numpy(found[name].records[:, 0].copy()).to(device)
            vectors[name] = values.requires_grad_()
        batches = [
            to_tensors(replace(sample.batch, arrays={**sample.batch.arrays, **ids}), device)
            for sample, ids in zip(samples, copies, strict=True)
        ]
        return StepVectors(batches, vectors, found)

    def update(self, step: StepVectors, rate: float, decay: float) -> None:
        """One optimizer step of the rows that were read."""
        for name, found in step.found.items():
            gradient = step.vectors[name].grad
            if gradient is not None:  # a table that no segment of these batches reads
                self._tables[name].update(found, gradient.cpu().numpy(), rate, decay)

    def install(self, model: MTGR) -> tuple[dict[str, IdTable], dict[str, np.ndarray]]:
        """Freeze the tables into `model`; returns their ids and metadata (USE), by table."""
        id_tables, uses = {}, {}
        for name, table in self._tables.items():
            id_tables[name], values, uses[name] = table.frozen()
            model.embeddings.install(name, id_tables[name], torch.from_numpy(values.copy()))
        return id_tables, uses

    def state(self) -> dict[str, State]:
        """All of it as arrays, for `restore`."""
        return {name: table.state() for name, table in self._tables.items()}

    def restore(self, state: dict[str, State]) -> None:
        """Continue where `state` was taken, in tables just made with the same arguments."""
        for name, table in self._tables.items():
            table.restore(state[name])


def _columns(schema: FeatureSchema, table: str) -> list[tuple[str, int, int]]:
    """Where ids of a table stand: (segment, ids of a row, position among them)."""
    return [
        (segment, len(features), position)
        for segment in SEGMENTS
        for features in [schema.layouts[segment].ids]
        for position, feature in enumerate(features)
        if isinstance(feature, IdFeature) and feature.table == table
    ]


def _copied_ids(batch: PackedBatch) -> dict[str, np.ndarray]:
    return {name: ids.copy() for name, ids in batch.arrays.items() if name.endswith("_ids")}
