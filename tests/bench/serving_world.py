"""What the benchmarks of serving share: users, their features in Redis, a package, a gateway.

500 candidates for a user of 1,000 lifelong and 100 real-time events; weights are random, since
speed is what counts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep, time

import httpx
import numpy as np
import psutil
import torch

from engine_build.build import BuildOptions
from engine_build.package import build_package
from engine_build.runtime.manifest import EngineKind
from model_def.batch import Rows
from model_def.checkpoint import Checkpoint, save
from model_def.config import PRESETS, PackageConfig
from model_def.data.simulator import FIRST_ITEM_ID, HOUR_MS, SCHEMA
from model_def.id_table import IdTable
from model_def.model import MTGR
from model_def.rows import rows_from_columns
from service.features.store import FeatureStore, connect
from service.load import load_users
from service.settings import StoreSettings
from tests.bench.awake import SPINNER
from tests.conftest import ROOT

USERS, ITEMS, CANDIDATES = 100, 800, 500
BATCH = 8
"""Requests in one run of the engine, at most, where batching is on."""
PATIENCE_S = 120.0


@dataclass(frozen=True)
class User:
    """What `service.load.load_users` writes."""

    user_id: str
    snapshot_ms: int
    profile: Rows
    lifelong: Rows
    realtime: Rows


def users() -> Iterator[User]:
    """Users with full sequences, the real-time events in the hour before now."""
    rng, layouts = np.random.default_rng(0), SCHEMA.layouts
    now = int(time() * 1000)

    def events(segment: str, count: int, begin: int, end: int, **stamps: object) -> Rows:
        columns = {
            "item_id": rng.integers(FIRST_ITEM_ID, FIRST_ITEM_ID + ITEMS, count),
            "category": rng.integers(1, 13, count),
            "action": rng.integers(1, 3, count),
            "price": rng.uniform(2, 60, count),
        }
        times = np.sort(rng.integers(begin, end, count))
        return rows_from_columns(layouts[segment], columns, count, {"time_ms": times, **stamps})

    snapshot, year = now - HOUR_MS, 365 * 24 * HOUR_MS
    for number in range(USERS):
        profile = {feature.name: [1] for feature in SCHEMA.profile}
        yield User(
            user_id=f"u{number:05d}",
            snapshot_ms=snapshot,
            profile=rows_from_columns(layouts["profile"], profile, 1, {}),
            lifelong=events("lifelong", SCHEMA.lifelong_cap, snapshot - year, snapshot),
            realtime=events(
                "realtime",
                SCHEMA.realtime_cap,
                snapshot + 1,
                now,
                event_id=np.arange(SCHEMA.realtime_cap),
            ),
        )


async def load(url: str) -> None:
    """Write the users to Redis."""
    redis = connect(url, 16)
    try:
        await load_users(FeatureStore(redis, SCHEMA, StoreSettings()), users())
    finally:
        await redis.aclose()


def make_package(directory: Path, preset: str, kind: EngineKind) -> Path:
    """A package of random weights with one engine, its buckets for batches of full requests."""
    config = PackageConfig(version=f"bench-{preset}", model=PRESETS[preset], features=SCHEMA)
    ids = range(FIRST_ITEM_ID, FIRST_ITEM_ID + ITEMS)
    tables = {name: IdTable(ids) for name in SCHEMA.id_tables}
    checkpoint = directory / f"{preset}-checkpoint"
    torch.manual_seed(0)  # other weights may differ in 16 bit by more than a package is let to
    save(checkpoint, Checkpoint(config, MTGR(config.model, SCHEMA, tables), tables, {}))
    sizes = directory / "sizes.csv"
    full = (1, SCHEMA.lifelong_cap, SCHEMA.realtime_cap, CANDIDATES)
    lines = [",".join(str(n * size) for size in full) for n in range(1, BATCH + 1)]
    sizes.write_text("\n".join(["requests,lifelong,realtime,candidates", *lines]) + "\n")
    options = BuildOptions(batch_requests=BATCH, max_candidates=CANDIDATES, traffic=sizes)
    build_package(checkpoint, directory / preset, [kind], options, progress=lambda step: None)
    return directory / preset


MODEL_PY = """\
import os
import pathlib
import sys

sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)

from tests.bench import traced_model

traced_model.FILE, traced_model.AT_ONCE = pathlib.Path({file!r}), {at_once}
TritonPythonModel = traced_model.TritonPythonModel
"""


def watch(model: Path, file: Path, *, at_once: bool) -> None:
    """Have a model of a repository be a `traced_model`, which writes to `file`."""
    code = MODEL_PY.format(file=str(file), at_once=at_once)
    (model / "1" / "model.py").write_text(code)


@contextmanager
def gateway(models: dict[str, object], redis_url: str, workers: int, log: Path) -> Iterator[str]:
    """`mtgr serve` in processes of its own, ready; its URL."""
    port = 18_000 + os.getpid() % 1000
    command = [sys.executable, "-m", "mtgr", "serve", "--models", json.dumps(models)]
    command += ["--port", str(port), "--redis-url", redis_url, "--max-in-flight", "4096"]
    command += ["--max-candidates", str(CANDIDATES)]
    command += ["--workers", str(workers)] if workers > 1 else []
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as lines:
        process = subprocess.Popen(command, cwd=ROOT, stdout=lines, stderr=lines)
    try:
        until = monotonic() + PATIENCE_S
        while not _ready(url):
            if monotonic() > until or process.poll() is not None:
                raise SystemExit(log.read_text())
            sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def servers() -> Iterator[tuple[str, psutil.Process]]:
    """This process's descendants with what they are."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            name = process.name()
            if name != SPINNER:
                yield (
                    next((told for known, told in NAMES.items() if name.startswith(known)), name),
                    process,
                )


def cpu_s() -> dict[str, float]:
    """CPU seconds so far of this process's descendants, by what they are."""
    spent: dict[str, float] = {}
    for name, process in servers():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent[name] = spent.get(name, 0.0) + times.user + times.system
    return spent


NAMES = {"python": "gateway", "valkey": "redis", "triton_python": "model", "triton": "tritonserver"}


def cpu_ms_each(before: dict[str, float], after: dict[str, float], requests: float) -> str:
    """In words: what one of `requests` requests took in between."""
    spent = {name: 1e3 * (after[name] - before.get(name, 0.0)) / requests for name in after}
    return "  ".join(f"{name} {ms:.2f}" for name, ms in sorted(spent.items()))
