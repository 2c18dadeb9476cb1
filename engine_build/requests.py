"""Requests made from a schema alone: what an engine is traced, verified and warmed up with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model_def.batch import PackedBatch, Rows, Sample, merge, pack
from model_def.rows import rows_from_columns
from model_def.schema import (
    CategoryFeature,
    Feature,
    FeatureSchema,
    Identity,
    IdFeature,
    Log1p,
    Piecewise,
    Standardize,
)

SNAPSHOT_MS, REQUEST_MS = 1_700_000_000_000, 1_700_003_600_000
"""Real-time events lie in the hour between, the lifelong sequence in the year before."""

YEAR_MS = 365 * 86_400_000

UNKNOWN_SHARE = 0.1
"""Of the ids, so that the unknown id's row is part of every check."""


def random_request(
    schema: FeatureSchema,
    rng: Generator,
    lifelong: int,
    realtime: int,
    candidates: int,
    known_ids: Mapping[str, NDArray[np.int64]] | None = None,
) -> PackedBatch:
    """One packed request of the given token counts, values within what each feature expects.

    `known_ids` are ids by table to draw from; the rest, or all without, are unknown to the model.
    """

    def rows(segment: str, count: int, **stamps: Any) -> Rows:
        layout = schema.layouts[segment]
        columns = {f.name: _column(f, rng, count, known_ids or {}) for f in layout.features}
        return rows_from_columns(layout, columns, count, stamps)

    sample = Sample(
        snapshot_ms=SNAPSHOT_MS,
        profile=rows("profile", 1),
        lifelong=rows(
            "lifelong",
            lifelong,
            time_ms=np.sort(rng.integers(SNAPSHOT_MS - YEAR_MS, SNAPSHOT_MS, lifelong)),
        ),
        realtime=rows(
            "realtime",
            realtime,
            event_id=np.arange(realtime),
            time_ms=np.sort(rng.integers(SNAPSHOT_MS + 1, REQUEST_MS, realtime)),
        ),
        context=rows("context", 1, time_ms=np.array([REQUEST_MS])),
        candidates=rows("candidate", candidates),
        context_candidates=np.array([candidates], np.int32),
    )
    return pack(schema, sample)


def random_batch(
    schema: FeatureSchema, rng: Generator, sizes: Sequence[tuple[int, int, int]]
) -> PackedBatch:
    """Requests of the given (lifelong, realtime, candidates) token counts, merged."""
    return merge([random_request(schema, rng, *size) for size in sizes], schema)


def _column(
    feature: Feature, rng: Generator, count: int, known_ids: Mapping[str, NDArray[np.int64]]
) -> NDArray[Any]:
    if isinstance(feature, CategoryFeature):
        return rng.integers(0, feature.size, count)
    if isinstance(feature, IdFeature):
        unknown = rng.integers(-(2**63), 2**63, count, dtype=np.int64)
        known = known_ids.get(feature.table, unknown[:0])
        if not len(known):
            return unknown
        return np.where(rng.random(count) < UNKNOWN_SHARE, unknown, rng.choice(known, count))
    match feature.transform:
        case Standardize(mean=mean, std=std):
            return rng.normal(mean, std, count)
        case Piecewise(edges=edges):
            return rng.uniform(edges[0], edges[-1], count)
        case Log1p():
            return np.expm1(rng.exponential(2.0, count))
        case Identity():
            return rng.normal(0.0, 1.0, count)
