"""What the plan tells the token kernel, read here as the kernel reads it, without a GPU."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine_build.requests import random_batch
from engine_build.runtime.plan_features import BIN, CARRIERS, CONSTANT, LOG, FeatureRows, Tables
from model_def.batch import PackedBatch
from model_def.config import PRESETS
from model_def.model import MTGR, to_tensors
from model_def.tokens import SegmentEncoding
from plugins import abi
from tests.model_def import cases

WIDTHS = (8, 12)
"""Embedding widths: one that fills its vectors, one that does not."""


def net_of(width: int) -> MTGR:
    return cases.model(PRESETS["tiny"].model_copy(update={"embedding_dim": width}))


def structs(kind: type[ctypes.Structure], raw: torch.Tensor) -> Sequence[Any]:
    data = raw.numpy().tobytes()
    count = len(data) // ctypes.sizeof(kind)
    return (kind * count).from_buffer_copy(data)


def encoded(number: abi.Number, row: NDArray[Any]) -> float:
    if number.kind == CONSTANT:
        return float(number.shift)
    x = float(row[number.column])
    if number.kind == LOG:
        x = np.copysign(np.log1p(abs(x)), x)
    x = (x - number.shift) * number.scale
    return min(max(x, 0.0), 1.0) if number.kind == BIN else x


def rows_of(batch: PackedBatch, segment: str, net: MTGR) -> list[NDArray[Any] | None]:
    """The sources of a segment, one 2-D array a carrier."""
    specs = {spec.name: spec for spec in net.schema.arrays}
    names = [f"{segment}_{carrier}" for carrier in CARRIERS]
    return [
        batch.arrays[n].reshape(-1, specs[n].width) if n in batch.arrays else None for n in names
    ]


def features(
    made: FeatureRows, net: MTGR, sources: list[NDArray[Any] | None], tokens: int
) -> torch.Tensor:
    """The rows that the kernel writes, from the descriptors alone and the model's own tables."""
    of, _ = made.on(torch.device("cpu"), torch.float32)
    tables = structs(abi.Table, of.tables)
    vectors, numbers = structs(abi.Vector, of.vector), structs(abi.Number, of.numbers)
    count = len(next(s for s in sources if s is not None)) * tokens
    out = torch.zeros(count, of.vectors, 8)
    for row in range(count):
        for column, vector in enumerate(vectors):
            if vector.token not in (-1, row % tokens):
                continue
            source = sources[vector.source]
            assert source is not None
            values = source[row // tokens]
            if vector.table < 0:
                eight = numbers[vector.first : vector.first + 8]
                out[row, column] = torch.tensor([encoded(n, values) for n in eight])
                continue
            table = tables[vector.table]
            at = int(values[vector.column])
            if table.keys:
                keys = np.ctypeslib.as_array(
                    ctypes.cast(table.keys, ctypes.POINTER(ctypes.c_int64)),
                    (1 << table.log_capacity,),
                )
                rows = np.ctypeslib.as_array(
                    ctypes.cast(table.rows, ctypes.POINTER(ctypes.c_int32)), keys.shape
                )
                at = int(rows[(keys == at) & (rows > 0)].sum())
            held = np.ctypeslib.as_array(
                ctypes.cast(table.values, ctypes.POINTER(ctypes.c_float)),
                (table.count, table.width),
            )
            out[row, column] = torch.from_numpy(held[at, vector.first : vector.first + 8].copy())
    return out.flatten(1)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("segment", ["lifelong", "realtime", "candidate", "context"])
def test_segment(segment: str, width: int) -> None:
    """A segment's rows times the rearranged weight are the module's projection."""
    net = net_of(width)
    batch = random_batch(cases.SCHEMA, np.random.default_rng(0), [(7, 3, 5)])
    encoding = net.context if segment == "context" else getattr(net, segment).hidden
    assert isinstance(encoding, SegmentEncoding)
    made = FeatureRows(Tables(net.embeddings, torch.float32, torch.device("cpu")))
    made.add_segment(encoding, net.schema.layouts[segment], 0)
    _, weight = made.on(torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        expected = encoding(net.embeddings(to_tensors(batch)))
    got = features(made, net, rows_of(batch, segment, net), 1) @ weight.T + encoding.projection.bias
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_profile(width: int) -> None:
    """One product over rows of which each holds its own token's features gives the tokens of every
    profile, biases included."""
    net = net_of(width)
    batch = random_batch(cases.SCHEMA, np.random.default_rng(1), [(2, 1, 1), (0, 0, 2)])
    made = FeatureRows(Tables(net.embeddings, torch.float32, torch.device("cpu")))
    made.add_profile(net.profile, net.schema.layouts["profile"])
    _, weight = made.on(torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        expected = net.profile(net.embeddings(to_tensors(batch)))
    got = features(made, net, rows_of(batch, "profile", net), net.profile.tokens) @ weight.T
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
