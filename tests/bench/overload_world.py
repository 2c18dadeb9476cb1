"""What is overloaded: a gateway and a Redis with users, each process on the core that it is given.

The gateway has one core; Redis and the load share another. Else the scheduler moves them about, and
what is measured depends on who happened to be where.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import time

import httpx
import psutil

from model_def.data.past import Past
from model_def.data.simulator import SCHEMA, Marketplace
from model_def.data.traffic import latest_snapshot, stored_items, stored_users
from service.features.store import FeatureStore, connect
from service.load import load_items, load_users
from service.settings import StoreSettings
from tests.conftest import ROOT


@dataclass(frozen=True)
class Gateway:
    """One that is ready."""

    url: str
    process: psutil.Process
    redis_pid: int

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        return cpu_s(self.process)

    def others_cpu_s(self) -> float:
        """CPU seconds that whoever is not it, Redis or this process has used on this machine."""
        every = psutil.cpu_times()
        ours = [self.process, psutil.Process(self.redis_pid), psutil.Process()]
        return float(every.user + every.nice + every.system) - sum(map(cpu_s, ours))


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def one_core() -> Iterator[int | None]:
    """This process, and whom it starts, kept to one core; gives another, for the gateway, or None
    where there is none."""
    every = os.sched_getaffinity(0)
    ours, *others = sorted(every)
    if others:
        os.sched_setaffinity(0, {ours})
    try:
        yield next(iter(others), None)
    finally:
        os.sched_setaffinity(0, every)


async def load(redis_url: str) -> None:
    """Write the users and items of the marketplace that the traffic is about."""
    past = Past(Marketplace(), latest_snapshot(int(time() * 1000)))
    redis = connect(redis_url, 64)
    store = FeatureStore(redis, SCHEMA, StoreSettings())
    try:
        await load_users(store, stored_users(past))
        await load_items(store, *stored_items(past))
    finally:
        await redis.aclose()


@contextmanager
def gateway(redis_url: str, redis_pid: int, rate: float, core: int | None) -> Iterator[Gateway]:
    """A gateway over an engine of that rate, on that core."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "tests.bench.overload_server"]
    process = subprocess.Popen(
        [*arguments, str(port), redis_url, str(rate)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})  # it has no other threads yet
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx.get(f"{url}/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                if process.poll() is not None:
                    raise
        yield Gateway(url, psutil.Process(process.pid), redis_pid)
    finally:
        process.terminate()
        process.wait()
