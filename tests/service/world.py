"""A small market to serve: two schemas, an engine that is plain arithmetic, a gateway on a thread.

The engine is real mathematics on every segment, so a lost feature, a wrong row or a swapped
candidate changes a score; the shipped package and its ONNX engine are served in test_package.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np

from engine_build.runtime.engine import Engine, Scores
from model_def.batch import PackedBatch
from model_def.config import PRESETS, PackageConfig
from model_def.schema import CategoryFeature, FeatureSchema, IdFeature, Log1p, NumberFeature
from service.backends.inprocess import InProcessBackend
from service.features.store import connect
from service.http.gateway import Gateway
from service.http.server import GatewayServer
from service.scenes import OpenModel, build_scenes
from service.settings import ModelSettings, Settings

SCHEMA = FeatureSchema(
    name="market",
    profile=(
        CategoryFeature(name="age", size=8, default=0),
        IdFeature(name="city", default=0),
        NumberFeature(name="orders", transform=Log1p(), default=0.0),
    ),
    behaviour=(
        IdFeature(name="item_id"),
        CategoryFeature(name="action", size=4),
        NumberFeature(name="price"),
    ),
    item=(
        IdFeature(name="item_id"),
        CategoryFeature(name="cuisine", size=300),
        NumberFeature(name="price"),
    ),
    cross=(NumberFeature(name="distance"), NumberFeature(name="past_orders", default=0.0)),
    context=(CategoryFeature(name="hour", size=24),),
    lifelong_cap=8,
    realtime_cap=5,
)
OTHER_SCHEMA = FeatureSchema(
    name="adverts",
    profile=(IdFeature(name="segment", default=0),),
    behaviour=(IdFeature(name="item_id"),),
    item=(IdFeature(name="item_id"), IdFeature(name="campaign")),
    cross=(NumberFeature(name="bid", dtype="float16"),),
    lifelong_cap=4,
    realtime_cap=3,
)
NOW_MS = 1_760_000_000_000
SNAPSHOT_MS = NOW_MS - 3_600_000


class Arithmetic:
    """sigmoid of weighted sums over every array of one request's batch."""

    kind = "arithmetic"

    def run(self, batch: PackedBatch) -> Scores:
        """Scores of a batch of one request."""
        arrays = batch.arrays
        user = sum(
            float(np.sin(values.astype(np.float64)).sum())
            for name, values in arrays.items()
            if name.startswith(("profile", "lifelong", "realtime", "context"))
        )
        logits = np.zeros(batch.candidates)
        for name, values in arrays.items():
            if name.startswith("candidate_") and name != "candidate_offsets":
                table = values.reshape(batch.candidates, -1).astype(np.float64)
                logits += np.sin(table * (1.0 + np.arange(table.shape[1]))).sum(axis=1)
        ctr = 1.0 / (1.0 + np.exp(-(logits + np.sin(user))))
        return Scores({"ctr": ctr.astype(np.float32), "ctcvr": (0.5 * ctr**2).astype(np.float32)})


def opener(schema: FeatureSchema, engine: Engine | None = None, version: str = "v1") -> OpenModel:
    """Opens `engine` (Arithmetic by default) as a package of `schema`, whatever the directory."""

    def open_model(settings: ModelSettings) -> tuple[PackageConfig, InProcessBackend]:
        config = PackageConfig(version=version, model=PRESETS["tiny"], features=schema)
        load = lambda: engine or Arithmetic()  # noqa: E731 - the loader is this value
        return config, InProcessBackend(load, workers=settings.workers, queue=settings.queue)

    return open_model


def settings(redis_url: str, **more: Any) -> Settings:
    """Settings of one model named `home`, patient enough for a busy machine."""
    defaults: dict[str, Any] = {
        "models": {"home": ModelSettings(package=Path("unused"))},
        "redis_url": redis_url,
        "redis_timeout_ms": 2000,
        "redis_write_timeout_ms": 5000,
        "default_deadline_ms": 10_000,
    }
    return Settings(**(defaults | more))


@contextmanager
def running(
    settings: Settings,
    open_model: OpenModel,
    while_loading: Callable[[httpx.Client], None] = lambda client: None,
) -> Iterator[httpx.Client]:
    """A gateway behind uvicorn on a thread, and a client of it once it is ready."""
    redis = connect(settings.redis_url, settings.redis_connections)
    failures: list[BaseException] = []
    gateway = Gateway(settings, build_scenes(settings, redis, open_model), redis, failures.append)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = GatewayServer(gateway)
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while_loading(client)
            while client.get("/health/ready").status_code != 200:
                assert not failures, failures
            yield client
    finally:
        server.should_exit = True
        thread.join()


def candidate(item_id: int, **features: float) -> dict[str, Any]:
    """One candidate as an object."""
    values = {"cuisine": item_id % 300, "price": 1.5 + item_id, "distance": 0.25 * item_id}
    return {"item_id": item_id, "features": values | features}


def request(count: int = 3, **more: Any) -> dict[str, Any]:
    """A ranking request of `count` candidates as rows."""
    return {
        "user_id": "u1",
        "timestamp": NOW_MS,
        "context": {"hour": 12},
        "candidates": [candidate(i + 1) for i in range(count)],
    } | more


def as_columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same candidates, or behaviour, as one object of columns."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "features"}
    names = rows[0]["features"]
    return columns | {"features": {name: [row["features"][name] for row in rows] for name in names}}


def profile(lifelong: int = 4) -> dict[str, Any]:
    """The body of `PUT /v1/users/{id}` with that many past orders."""
    return {
        "snapshot_ms": SNAPSHOT_MS,
        "profile": {"age": 3, "city": 77, "orders": 12.5},
        "lifelong": [
            {
                "timestamp": SNAPSHOT_MS - 1000 * (lifelong - i),
                "features": {"item_id": i + 1, "action": i % 4, "price": 2.5 * i},
            }
            for i in range(lifelong)
        ],
    }


def event(event_id: str, timestamp: int = NOW_MS - 60_000, item_id: int = 5) -> dict[str, Any]:
    """One behaviour event."""
    features = {"item_id": item_id, "action": 1, "price": 9.5}
    return {"event_id": event_id, "timestamp": timestamp, "features": features}
