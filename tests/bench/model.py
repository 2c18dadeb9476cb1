"""The model's shortcuts on the CPU: structured attention, last-layer skipping, payload bytes.

python -m tests.bench.model
"""

import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu

from model_def import ops
from model_def.attention import STATIC
from model_def.batch import PackedBatch, Sample, pack
from model_def.config import PRESETS
from model_def.id_table import IdTable
from model_def.model import MTGR, to_tensors
from model_def.reference import dense_mask
from model_def.rows import empty_rows
from model_def.schema import CategoryFeature, FeatureSchema, IdFeature, NumberFeature
from tests.bench.timing import report, seconds

PROFILE = 10
SCHEMA = FeatureSchema(
    name="bench",
    profile=tuple(CategoryFeature(name=f"profile{i}", size=50) for i in range(PROFILE)),
    behaviour=(
        IdFeature(name="item_id"),
        IdFeature(name="brand"),
        CategoryFeature(name="action", size=8),
        CategoryFeature(name="category", size=200),
        NumberFeature(name="price"),
    ),
    item=(
        IdFeature(name="item_id"),
        IdFeature(name="brand"),
        CategoryFeature(name="category", size=200),
        NumberFeature(name="price"),
    ),
    cross=tuple(NumberFeature(name=f"cross{i}") for i in range(8)),
    context=(CategoryFeature(name="hour", size=24),),
)


def sample(candidates: int, lifelong: int = 1000, realtime: int = 100) -> Sample:
    """One request of the given lengths; values do not matter here, only shapes do."""
    rows = {name: empty_rows(layout) for name, layout in SCHEMA.layouts.items()}
    sized = {
        "lifelong": lifelong,
        "realtime": realtime,
        "candidate": candidates,
        "profile": 1,
        "context": 1,
    }
    rows = {name: np.zeros(count, rows[name].dtype) for name, count in sized.items()}
    rows["lifelong"]["time_ms"] = np.arange(lifelong)
    rows["realtime"]["time_ms"] = 10_000 + np.arange(realtime)
    rows["context"]["time_ms"] = 20_000
    return Sample(
        snapshot_ms=5_000,
        profile=rows["profile"],
        lifelong=rows["lifelong"],
        realtime=rows["realtime"],
        context=rows["context"],
        candidates=rows["candidate"],
        context_candidates=np.array([candidates], np.int32),
    )


def per_candidate_bytes(request: Sample) -> int:
    """Payload of the traditional layout: the whole user and context again for each candidate."""
    count = len(request.candidates)
    one = replace(
        request,
        candidates=request.candidates[:1],
        context_candidates=np.ones(1, np.int32),
    )
    return count * pack(SCHEMA, one).payload_bytes


def smallest_bytes(request: Sample) -> int:
    """Bytes of the features alone, each once in its smallest sufficient dtype."""

    def row(features: tuple[object, ...]) -> int:
        widths = {IdFeature: 8, CategoryFeature: 1, NumberFeature: 4}
        return sum(widths[type(feature)] for feature in features)

    times, visible = 4, 1
    return (
        row(SCHEMA.profile)
        + row(SCHEMA.context)
        + times
        + len(request.lifelong) * (row(SCHEMA.behaviour) + times)
        + len(request.realtime) * (row(SCHEMA.behaviour) + times + visible)
        + len(request.candidates) * (row(SCHEMA.candidate) + visible)
    )


def attention_sides(packed: PackedBatch) -> dict[str, object]:
    """The same attention, structured and with a dense mask, at the small preset's heads."""
    config, arrays = PRESETS["small"], packed.arrays
    static = PROFILE + int(arrays["lifelong_offsets"][-1])
    layout = (
        torch.tensor([0, static], dtype=torch.int32),
        torch.from_numpy(arrays["rt_offsets"]),
        torch.from_numpy(arrays["candidate_offsets"]),
        torch.from_numpy(arrays["rt_visible"]).int(),
        torch.from_numpy(arrays["candidate_visible"]).int(),
    )
    rows = static + len(layout[3]) + len(layout[4])
    q, k, v = (torch.randn(rows, config.heads, config.head_dim) for _ in "qkv")
    mask = dense_mask(*layout, rows)

    def dense() -> Tensor:
        heads = (t.transpose(0, 1) for t in (q, k, v))
        queries, keys, values = heads
        weights = silu(config.alpha * queries @ keys.mT) * mask
        return (weights @ values).transpose(0, 1) * config.inv_n

    def structured() -> Tensor:
        return ops.hstu_attention(q, k, v, *layout, config.alpha, config.inv_n)

    torch.testing.assert_close(dense(), structured(), rtol=1e-3, atol=1e-5)
    return {"dense": dense, "structured": structured}


class WholeLastLayer(torch.nn.Module):
    """The last layer computed for all rows, then cut: what skipping saves us from."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, frame: object, query: int) -> tuple[Tensor, object]:
        out, keys = self.layer(x, frame, STATIC)
        return out[frame.first_row(query) :], keys


@torch.no_grad()
def main() -> int:
    """Run every comparison; the exit status counts the bars missed."""
    torch.set_num_threads(1)
    held = []
    for candidates, bar in ((500, 1.4), (1000, 1.8)):
        sides = seconds(attention_sides(pack(SCHEMA, sample(candidates))))
        ratio = sides["dense"] / sides["structured"]
        held.append(report(f"dense / structured attention, K {candidates}", ratio, bar))
    net = MTGR(PRESETS["small"], SCHEMA, {n: IdTable(range(9)) for n in SCHEMA.id_tables}).eval()
    tensors = to_tensors(pack(SCHEMA, sample(500)))
    skipping, last = net.layers[-1], WholeLastLayer(net.layers[-1])

    def run(layer: torch.nn.Module) -> Tensor:
        net.layers[-1] = layer
        return net(tensors)

    times = seconds({"skip": lambda: run(skipping), "whole": lambda: run(last)}, rounds=9)
    saved = 100 * (1 - times["skip"] / times["whole"])
    held.append(report("last-layer skipping saves, % at K 500", saved, 12))
    request = sample(300)
    payload = pack(SCHEMA, request).payload_bytes
    held.append(
        report("payload / smallest dtypes", payload / smallest_bytes(request), 1.05, at_least=False)
    )
    held.append(
        report("per-candidate layout / payload, K 300", per_candidate_bytes(request) / payload, 120)
    )
    return held.count(False)


if __name__ == "__main__":
    sys.exit(main())
