"""Three times more load than can be answered: what is answered, and how fast the rest is refused.

A gateway in a process of its own with a real Redis, an open-loop generator in this one. Once the
engine is the bottleneck (a stub of 300 requests a second), once the gateway itself (a stub that
answers at once). For each: capacity by search, then 0.7 x capacity, then 60 s at 3 x and 10 s at
0.7 x again.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time

import httpx

from loadtest.goal import Goal
from loadtest.material import MARKETPLACE, read_material
from loadtest.open_loop import Limits, generate
from loadtest.outcome import Outcome
from loadtest.run import Latency, Run, summarize
from loadtest.schedule import Stage, schedule
from loadtest.search import Bounds, search
from loadtest.traffic import Mix, Traffic
from model_def.data.past import Past
from model_def.data.simulator import SCHEMA, Marketplace
from model_def.data.traffic import latest_snapshot, stored_items, stored_users
from service.features.embedded import embedded_server
from service.features.store import FeatureStore, connect
from service.load import load_items, load_users
from service.settings import StoreSettings
from tests.bench.timing import report
from tests.conftest import ROOT

GOAL = Goal(p99_ms=100, unserved=0.01)
MIX = Mix(bad=0, events=0)
LIMITS = Limits(connections=512)
OVER_S, AFTER_S, RECOVERY_S = 60.0, 10.0, 2.0
BACKEND_RATE = 300.0


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
def gateway(redis_url: str, rate: float) -> Iterator[str]:
    """The URL of a gateway that is ready, over an engine of that rate."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "tests.bench.overload_server"]
    process = subprocess.Popen(
        [*arguments, str(port), redis_url, str(rate)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx.get(f"{url}/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                if process.poll() is not None:
                    raise
        yield url
    finally:
        process.terminate()
        process.wait()


def measure(url: str, traffic: Traffic, *stages: Stage) -> Run:
    """One run through the stages."""
    plan = schedule(stages, "poisson", most=1_000_000)
    measured = generate(url, traffic, plan, LIMITS)
    return summarize(
        measured.samples,
        tool="open-loop",
        name="overload",
        url=url,
        seconds=plan.seconds,
        generator=measured.generator,
        goal=GOAL,
        settings={},
        stages=[(f"{stage.level:g}/s", stage.seconds) for stage in stages],
    )


def show(label: str, run: Run) -> None:
    """One line of a run."""
    counts = ", ".join(f"{count} {name}" for name, count in run.outcomes.items() if count)
    print(  # noqa: T201  # a benchmark's output
        f"      {label}: {run.rate_per_s:.0f}/s sent, {run.goodput_per_s:.0f}/s answered "
        f"({counts}); served {_told(run.latency)}; refused {_told(run.refusals)}; "
        f"{run.reasons}; generator's lag p99 {run.generator.lag_p99_ms:.1f} ms, "
        f"{run.generator.cpu_share:.0%} of a core"
    )


def _told(latency: Latency | None) -> str:
    return "-" if latency is None else f"p50 {latency.p50:.1f}, p99 {latency.p99:.1f} ms"


def bottleneck(name: str, redis_url: str, rate: float, least: float) -> list[bool]:
    """Every bar for one bottleneck; `least` of the peak goodput is kept at 3 x."""
    traffic = Traffic(read_material(MARKETPLACE), MIX)
    with gateway(redis_url, rate) as url:
        measure(url, traffic, Stage(3, 100))  # warm
        bounds = Bounds(low=200, high=8000, resolution=0.1, repeats=1)
        found = search(lambda at: measure(url, traffic, Stage(4, at)), bounds)
        capacity = found.rate or bounds.low
        peak = max(run.goodput_per_s for _, run in found.trials)
        print(f"{name}: capacity {capacity:.0f}/s, peak goodput {peak:.0f}/s")  # noqa: T201

        calm = measure(url, traffic, Stage(15, 0.7 * capacity))
        show("0.7 x capacity, 15 s", calm)
        assert calm.latency is not None, calm.outcomes
        held = [
            report(
                f"{name}: p99 / p50 at 0.7 x",
                calm.latency.p99 / calm.latency.p50,
                4,
                at_least=False,
            ),
            report(f"{name}: late at 0.7 x", calm.outcomes[Outcome.LATE], 0, at_least=False),
        ]

        run = measure(url, traffic, Stage(OVER_S, 3 * capacity), Stage(AFTER_S, 0.7 * capacity))
        show("3 x capacity, 60 s, then 0.7 x, 10 s", run)
        over = run.steps[0]
        goodput = over.outcomes[Outcome.ANSWERED] / over.seconds
        assert run.refusals is not None, run.outcomes
        after = [w for w in run.windows if w.start_s >= OVER_S + RECOVERY_S]
        bad = sum(count for w in after for o, count in w.outcomes.items() if o != Outcome.ANSWERED)
        worst = max((w.latency.p99 for w in after if w.latency), default=float("inf"))
        others = {o: run.outcomes[o] for o in (Outcome.LATE, Outcome.FAILED, Outcome.DEGRADED)}
        return [
            *held,
            report(f"{name}: goodput / peak at 3 x", goodput / peak, least),
            report(f"{name}: p99 of refusals, ms", run.refusals.p99, 5, at_least=False),
            report(f"{name}: late, failed, degraded", sum(others.values()), 0, at_least=False),
            report(f"{name}: unanswered 2 s after", bad, 0, at_least=False),
            report(f"{name}: worst p99 of a second then, ms", worst, GOAL.p99_ms, at_least=False),
        ]


def main() -> int:
    """Print every figure; the number of bars missed."""
    with (
        tempfile.TemporaryDirectory(prefix="mtgr-") as directory,
        embedded_server(Path(directory)) as redis_url,
    ):
        asyncio.run(load(redis_url))
        held = [
            *bottleneck("engine of 300/s", redis_url, BACKEND_RATE, 0.9),
            *bottleneck("gateway", redis_url, 0.0, 0.75),
        ]
    return held.count(False)


if __name__ == "__main__":
    sys.exit(main())
