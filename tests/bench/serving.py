"""The whole path under load: HTTP -> gateway -> Redis -> Triton, by HTTP or gRPC -> engine.

    python -m tests.bench.serving --kind cuda-graph --preset small --preset large
    python -m tests.bench.serving --kind cuda-graph --batch 1 --workers 4 --instances 2 \\
        --only light --light-per-s 24 120 200 --variant plain --variant pinned-awake

Each request ranks 500 candidates for a user of 1,000 lifelong and 100 real-time events. For each
model, with batching across requests and without: latency at light and at some load, the highest
open-loop rate whose p99 stays within the goal, where the time goes, and who spends how much CPU on
a request. Light load has variants: as it is, processes pinned to cores (`tests.bench.pinned`), and
either with the idle cores kept from sleeping; each at several rates.
`tests.bench.triton_call` looks into the call of Triton alone.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any

from engine_build.triton.model_config import ServingOptions
from engine_build.triton.repository import add_model
from loadtest.material import MARKETPLACE
from model_def.config import PRESETS
from service.features.embedded import embedded_server
from tests.bench.awake import QUALITY, cores_awake, idle_polls
from tests.bench.pinned import LAYOUTS, cores_of, pinned
from tests.bench.serving_figures import GOAL_MS, HEAD, figures, inside, measure, show
from tests.bench.serving_world import (
    BATCH,
    CANDIDATES,
    USERS,
    cpu_ms_each,
    cpu_s,
    gateway,
    load,
    make_package,
    servers,
    watch,
)
from tests.triton.install import install
from tests.triton.server import TritonServer

STEADY_PER_S = 150
"""Well below what any engine here can do: what is slow at it is a stall."""

IDLE = ("", "awake", "polls")
"""What idle cores do: sleep, run a loop of the lowest priority, or wait in the kernel's own."""

VARIANTS = tuple("-".join(filter(None, both)) or "plain" for both in product(("", *LAYOUTS), IDLE))
LOADS = ("light", "steady", "search")


def runs(given: argparse.Namespace, variant: str) -> Iterator[tuple[str, list[str]]]:
    """The loads of a variant, and what `mtgr load` is told; other variants see light load only."""

    def steady(rate: float) -> list[str]:
        return ["run", f"--stages=2:{rate:g},{given.light_s:g}:{rate:g}"]

    low = given.low
    told = {
        "light": [steady(rate) for rate in given.light_per_s],
        "steady": [steady(STEADY_PER_S)],
        "search": [["find", f"--low={low:g}", f"--trial-s={given.trial_s:g}", "--repeats=2"]],
    }
    for name in given.only or LOADS:
        if name == "light" or variant == "plain":
            for how in told[name]:
                yield name, how


@contextmanager
def as_variant(variant: str) -> Iterator[bool]:
    """Idle cores and processes kept as a variant says; whether that can be done here."""
    words = variant.split("-")
    layout = next((word for word in words if word in LAYOUTS), None)
    places = cores_of(layout) if layout else None
    with ExitStack() as stack:
        missing = "more cores" if layout and places is None else ""
        if "polls" in words and not stack.enter_context(idle_polls()):
            missing = f"leave to open {QUALITY}"
        if missing:
            print(f"SKIPPED: {variant} needs {missing}", flush=True)  # noqa: T201  # a benchmark's output
        elif "awake" in words:
            stack.enter_context(cores_awake())
        if places and not missing:
            stack.enter_context(pinned(places, servers()))
        yield not missing


def variants(
    given: argparse.Namespace, url: str, triton: str, model: str, title: str, out: Path
) -> Iterator[dict[str, Any]]:
    """Figures of every variant and load of one model behind a gateway."""
    for variant in given.variant or ["plain"]:
        with as_variant(variant) as possible:
            for name, how in runs(given, variant) if possible else ():
                before, spent = inside(triton, model), cpu_s()
                run = measure(url, out, *how)
                after = inside(triton, model)
                # A search tells of its best trial only; Triton knows all of them.
                cpu = cpu_ms_each(spent, cpu_s(), after["requests"] - before["requests"])
                told = f"{title}, {variant}, {name}"
                show(told, run, before, after, cpu)
                yield figures(told, run, cpu)


def serve(given: argparse.Namespace, work: Path, redis_url: str) -> Iterator[dict[str, Any]]:
    """Figures of every model, batching, variant and load, printed as they come."""
    home, log = install(), work / "gateway.log"
    for preset in given.preset or ["small"]:
        package = make_package(work, preset, given.kind)
        for batch in given.batch or (BATCH, 1):
            repository = work / f"{preset}-{batch}"
            repository.mkdir()
            options = ServingOptions(
                max_candidates=CANDIDATES, batch_requests=batch, instances=given.instances
            )
            model_name = add_model(repository, package, given.kind, options)
            if given.at_once:
                watch(repository / model_name, work / "model", at_once=True)
            with TritonServer(home, repository) as server:
                model = {
                    "package": str(package),
                    "engine": given.kind,
                    "backend": "triton",
                    "triton": [server.address],
                    "triton_http": [] if given.grpc else [server.http],
                    "queue": 256,
                    "shared_requests": given.shared_requests,
                }
                title, out = f"{preset}, {batch} a run", work / "run.json"
                with gateway({"home": model}, redis_url, given.workers, log) as url:
                    yield from variants(given, url, server.address, model_name, title, out)


def main() -> int:
    """Print the figures; they are absolute, of one machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="cuda-graph")
    parser.add_argument("--preset", action="append", choices=sorted(PRESETS))
    parser.add_argument("--batch", action="append", type=int, help="requests in a run at most")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="of light load")
    parser.add_argument("--only", action="append", choices=LOADS)
    parser.add_argument("--workers", type=int, default=1, help="gateway processes")
    parser.add_argument("--instances", type=int, default=1, help="of the engine, in Triton")
    parser.add_argument("--grpc", action="store_true", help="ask Triton by gRPC, not by HTTP")
    parser.add_argument("--at-once", action="store_true", help="in place of the engine: none")
    parser.add_argument("--light-per-s", type=float, nargs="+", default=[24.0])
    parser.add_argument("--light-s", type=float, default=10, help="of light and of steady load")
    parser.add_argument("--low", type=float, default=100, help="first rate of the search")
    parser.add_argument("--trial-s", type=float, default=3)
    parser.add_argument("--shared-requests", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for all figures, whole at any time")
    given = parser.parse_args()
    start, found = monotonic(), list[dict[str, Any]]()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis_url = stack.enter_context(embedded_server(work / "redis"))
        asyncio.run(load(redis_url))
        material = json.loads(MARKETPLACE.read_text()) | {"users": USERS}
        (work / "material.json").write_text(json.dumps(material))
        print(HEAD)  # noqa: T201  # a benchmark's output
        for figure in serve(given, work, redis_url):
            found.append(figure | {"s_since_start": round(monotonic() - start)})
            if given.out is not None:
                given.out.write_text(json.dumps({"goal_ms": GOAL_MS, "runs": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
