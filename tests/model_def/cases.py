"""Random inputs for the model's tests: ragged attention batches, samples of a small schema."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from model_def.batch import PackedBatch, Rows, Sample, merge, pack
from model_def.config import PRESETS, ModelConfig
from model_def.id_table import IdTable
from model_def.model import MTGR
from model_def.rows import rows_from_columns
from model_def.schema import (
    CategoryFeature,
    FeatureSchema,
    IdFeature,
    Log1p,
    NumberFeature,
    Piecewise,
    Standardize,
)

SCHEMA = FeatureSchema(
    name="cases",
    profile=(
        CategoryFeature(name="age", size=8, default=0),
        IdFeature(name="city", default=0),
        NumberFeature(name="orders", transform=Log1p(), default=0.0),
    ),
    behaviour=(
        IdFeature(name="item_id"),
        CategoryFeature(name="action", size=4),
        NumberFeature(name="price", transform=Log1p()),
    ),
    item=(
        IdFeature(name="item_id"),
        CategoryFeature(name="cuisine", size=300),
        NumberFeature(name="price", transform=Log1p()),
    ),
    cross=(
        NumberFeature(name="distance", transform=Piecewise(edges=(0.0, 1.0, 2.0, 5.0))),
        NumberFeature(name="past_orders", transform=Standardize(mean=1.0, std=2.0)),
    ),
    context=(CategoryFeature(name="hour", size=24),),
    lifelong_cap=12,
    realtime_cap=5,
)
SNAPSHOT_MS = 1_700_000_000_000


def id_tables(known: int = 50) -> dict[str, IdTable]:
    """Tables that know the ids below `known`; others are the unknown id."""
    return {name: IdTable(range(known)) for name in SCHEMA.id_tables}


def model(config: ModelConfig = PRESETS["tiny"], seed: int = 0) -> MTGR:
    """A model of random weights, biases and affines too, so that no term is invisible."""
    torch.manual_seed(seed)
    made = MTGR(config, SCHEMA, id_tables()).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "ln_" in name or "bias" in name:
                parameter += 0.2 * torch.randn_like(parameter)
    return made


def behaviours(rng: np.random.Generator, segment: str, times_ms: list[int]) -> Rows:
    """Behaviour rows at the given times, their event ids in random order."""
    count = len(times_ms)
    stamps: dict[str, object] = {"time_ms": times_ms}
    if segment == "realtime":
        stamps["event_id"] = rng.permutation(count) + 1
    columns = {
        "item_id": rng.integers(0, 80, count),
        "action": rng.integers(0, 4, count),
        "price": rng.gamma(2.0, 10.0, count),
    }
    return rows_from_columns(SCHEMA.layouts[segment], columns, count, stamps)


def candidates(rng: np.random.Generator, count: int) -> Rows:
    """Candidate rows with features of every kind."""
    columns = {
        "item_id": rng.integers(0, 80, count),
        "cuisine": rng.integers(0, 300, count),
        "price": rng.gamma(2.0, 10.0, count),
        "distance": rng.gamma(2.0, 1.0, count),
        "past_orders": rng.poisson(1.0, count),
    }
    return rows_from_columns(SCHEMA.layouts["candidate"], columns, count)


def sample(
    seed: int,
    *,
    lifelong: int = 7,
    event_ms: tuple[int, ...] = (1000, 2000, 2000, 5000),
    request_ms: tuple[int, ...] = (4000,),
    counts: tuple[int, ...] = (6,),
) -> Sample:
    """A user with `lifelong` behaviours; events and requests at milliseconds after the snapshot."""
    rng = np.random.default_rng(seed)
    profile = {"age": [rng.integers(8)], "city": [rng.integers(80)], "orders": [rng.random() * 9]}
    ages = -np.sort(rng.integers(0, 10**9, lifelong))[::-1]
    return Sample(
        snapshot_ms=SNAPSHOT_MS,
        profile=rows_from_columns(SCHEMA.layouts["profile"], profile, 1),
        lifelong=behaviours(rng, "lifelong", (SNAPSHOT_MS + ages).tolist()),
        realtime=behaviours(rng, "realtime", [SNAPSHOT_MS + t for t in event_ms]),
        context=rows_from_columns(
            SCHEMA.layouts["context"],
            {"hour": rng.integers(0, 24, len(request_ms))},
            len(request_ms),
            {"time_ms": [SNAPSHOT_MS + t for t in request_ms]},
        ),
        candidates=candidates(rng, sum(counts)),
        context_candidates=np.array(counts, np.int32),
    )


def batch(*samples: Sample) -> PackedBatch:
    """The samples packed and merged."""
    return merge([pack(SCHEMA, s) for s in samples], SCHEMA)


@dataclass(frozen=True)
class AttentionCase:
    """Arguments of the attention op for a ragged batch, padding rows included."""

    q: Tensor
    k: Tensor
    v: Tensor
    static_offsets: Tensor
    rt_offsets: Tensor
    candidate_offsets: Tensor
    rt_visible: Tensor
    candidate_visible: Tensor

    @property
    def layout(self) -> tuple[Tensor, ...]:
        return (
            self.static_offsets,
            self.rt_offsets,
            self.candidate_offsets,
            self.rt_visible,
            self.candidate_visible,
        )

    @property
    def first_rows(self) -> tuple[int, int, int]:
        rt = len(self.k) - len(self.rt_visible) - len(self.candidate_visible)
        return 0, rt, rt + len(self.rt_visible)


def attention_case(
    lengths: list[tuple[int, int, int]],
    padding: tuple[int, int, int] = (0, 0, 0),
    *,
    heads: int = 2,
    kv_heads: int = 2,
    head_dim: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> AttentionCase:
    """Requests of (static, real-time, candidate) lengths; padding rows hold NaN."""
    torch.manual_seed(seed)
    columns = list(zip(*lengths, strict=True))
    totals = [sum(c) + p for c, p in zip(columns, padding, strict=True)]
    offsets = [
        torch.tensor([0, *np.cumsum(column).tolist()], dtype=torch.int32) for column in columns
    ]
    rt_visible = [torch.randint(i + 1, ()) for _, rt, _ in lengths for i in range(rt)]
    candidate_visible = [torch.randint(rt + 1, ()) for _, rt, c in lengths for _ in range(c)]
    q = torch.randn(sum(totals), heads, head_dim, dtype=dtype)
    k, v = (torch.randn(sum(totals), kv_heads, head_dim, dtype=dtype) for _ in "kv")
    start = 0
    for column, total in zip(columns, totals, strict=True):
        for tensor in (q, k, v):
            tensor[start + sum(column) : start + total] = torch.nan
        start += total
    return AttentionCase(
        q,
        k,
        v,
        *offsets,
        torch.tensor(rt_visible + [0] * padding[1], dtype=torch.int32),
        torch.tensor(candidate_visible + [0] * padding[2], dtype=torch.int32),
    )


request_lengths = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=4
)
paddings = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
