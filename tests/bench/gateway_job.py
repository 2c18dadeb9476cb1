"""The job of `tests.bench.gateway`, the same for every server: its schema, users and bodies.

500 candidates of 16 numbers each for a user with full sequences; the 50 best are answered. The
engine returns at once: what is measured is all the rest.
"""

import asyncio
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from model_def.batch import PackedBatch
from model_def.config import PRESETS, PackageConfig
from model_def.rows import rows_from_columns
from model_def.schema import CategoryFeature, FeatureSchema, IdFeature, NumberFeature
from service.deadline import Deadline
from service.features.store import FeatureStore, connect
from service.ranking import Floats
from service.settings import ModelSettings, StoreSettings

CANDIDATES, NUMBERS, TOP_K = 500, 16, 50
LIFELONG, REALTIME = 1000, 100
USERS = 64
NOW_MS = 1_760_000_000_000
NAMES = tuple(f"f{i:02d}" for i in range(NUMBERS))
SCHEMA = FeatureSchema(
    name="bench-gateway",
    profile=tuple(CategoryFeature(name=f"profile{i}", size=50) for i in range(10)),
    behaviour=(
        IdFeature(name="item_id"),
        CategoryFeature(name="action", size=8),
        CategoryFeature(name="category", size=200),
        NumberFeature(name="price"),
    ),
    item=(IdFeature(name="item_id"),),
    cross=tuple(NumberFeature(name=name) for name in NAMES),
    context=(CategoryFeature(name="hour", size=24),),
    lifelong_cap=LIFELONG,
    realtime_cap=REALTIME,
)


@cache
def probabilities(count: int) -> dict[str, NDArray[np.float32]]:
    """What the engine stub answers for `count` candidates: every score differs."""
    ctr = np.random.default_rng(count).random(count, np.float32)
    return {"ctr": ctr, "ctcvr": ctr * np.float32(0.5)}


class AtOnce:
    """A backend (`service.backends.generation.LoadedBackend`) that costs nothing."""

    ready = True

    async def start(self, warm_up: tuple[PackedBatch, ...]) -> None:
        """Nothing to load."""

    async def score(
        self, batch: PackedBatch, deadline: Deadline, user_id: str
    ) -> Mapping[str, Floats]:
        """The same for every batch of a size."""
        return probabilities(batch.candidates)

    async def close(self) -> None:
        """Nothing to give back."""


def open_model(settings: ModelSettings) -> tuple[PackageConfig, AtOnce]:
    """A package of the schema whose engine is the stub."""
    return PackageConfig(version="bench", model=PRESETS["tiny"], features=SCHEMA), AtOnce()


def fill(redis_url: str) -> None:
    """Store every user with full sequences."""

    async def write() -> None:
        redis = connect(redis_url, 4)
        store = FeatureStore(redis, SCHEMA, StoreSettings())
        for user in range(USERS):
            rng = np.random.default_rng(user)
            profile = rows_from_columns(
                SCHEMA.layouts["profile"],
                {f.name: rng.integers(0, 50, 1) for f in SCHEMA.profile},
                1,
            )
            past = _behaviour(rng, "lifelong", LIFELONG, NOW_MS - 10**9)
            recent = _behaviour(rng, "realtime", REALTIME, NOW_MS - 10**6)
            await store.put_user(f"u{user:03d}", NOW_MS - 10**7, profile, past, Deadline.after(30))
            await store.append(f"u{user:03d}", recent, Deadline.after(30))
        await redis.aclose()

    asyncio.run(write())


def _behaviour(rng: np.random.Generator, segment: str, count: int, start_ms: int):  # type: ignore[no-untyped-def]
    columns = {
        "item_id": rng.integers(1, 10**9, count),
        "action": rng.integers(0, 8, count),
        "category": rng.integers(0, 200, count),
        "price": rng.random(count),
    }
    stamps = {"time_ms": start_ms + 1000 * np.arange(count)}
    if segment == "realtime":
        stamps["event_id"] = rng.integers(1, 1 << 60, count)
    return rows_from_columns(SCHEMA.layouts[segment], columns, count, stamps)


def bodies(shape: str) -> list[bytes]:
    """One body a user. `shape` is MessagePack columns, JSON columns or JSON rows."""
    return [_body(shape, user) for user in range(USERS)]


def _body(shape: str, user: int) -> bytes:
    rng = np.random.default_rng([1, user])
    numbers = np.round(rng.random((NUMBERS, CANDIDATES)), 5)
    item_ids = 10**9 + rng.permutation(10**5)[:CANDIDATES]
    request = {
        "request_id": f"bench-{user:03d}",
        "user_id": f"u{user:03d}",
        "timestamp": NOW_MS,
        "deadline_ms": 10_000,
        "top_k": TOP_K,
        "context": {"hour": 12},
    }
    if shape == "MessagePack columns":
        columns = {n: _binary("<f4", v) for n, v in zip(NAMES, numbers, strict=True)}
        table = {"item_id": _binary("<i8", item_ids), "features": columns}
        return msgspec.msgpack.encode(request | {"candidates": table})
    if shape == "JSON columns":
        columns = dict(zip(NAMES, numbers.tolist(), strict=True))
        table = {"item_id": item_ids.tolist(), "features": columns}
        return msgspec.json.encode(request | {"candidates": table})
    rows = [
        {"item_id": item_id, "features": dict(zip(NAMES, values, strict=True))}
        for item_id, values in zip(item_ids.tolist(), numbers.T.tolist(), strict=True)
    ]
    return msgspec.json.encode(request | {"candidates": rows})


def _binary(dtype: str, values: NDArray[np.generic]) -> dict[str, object]:
    return {"dtype": dtype, "data": values.astype(dtype).tobytes()}


MEDIA = {
    "MessagePack columns": "application/msgpack",
    "JSON columns": "application/json",
    "JSON rows": "application/json",
}
STORE = Path("unused")
