"""The whole path under load: HTTP -> gateway -> Redis -> gRPC -> Triton -> engine.

    python -m tests.bench.serving --kind cuda-graph --preset small --preset large

Each request ranks 500 candidates for a user of 1,000 lifelong and 100 real-time events. For each
model, with batching across requests and without: latency at light and at some load, the highest
open-loop rate whose p99 stays within the goal, where the time goes, and who spends how much CPU on
a request. `tests.bench.triton_call` looks into the call of Triton alone.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from engine_build.triton.model_config import ServingOptions
from engine_build.triton.repository import add_model
from loadtest.material import MARKETPLACE
from loadtest.run import Run, read_run
from model_def.config import PRESETS
from service.features.embedded import embedded_server
from tests.bench.serving_world import (
    BATCH,
    CANDIDATES,
    USERS,
    cpu_ms_each,
    cpu_s,
    gateway,
    load,
    make_package,
    watch,
)
from tests.conftest import ROOT
from tests.triton.install import install
from tests.triton.server import TritonServer

GOAL_MS = 20.0
LIGHT_PER_S, STEADY_PER_S = 20, 150
"""The second is well below what any engine here can do: what is slow at it is a stall."""


def measure(url: str, out: Path, command: str, *arguments: str) -> Run:
    """What `mtgr load COMMAND` writes of equal requests in MessagePack."""
    shape = ["--json-rows=0", "--json-columns=0", "--bad=0", "--events=0", "--cold-users=0"]
    shape += [
        f"--candidates-max={CANDIDATES}",
        "--candidates-median=1000000",
        "--candidates-sigma=.01",
    ]
    shape += [f"--material={out.parent / 'material.json'}", f"--p99-ms={GOAL_MS}", f"--out={out}"]
    run = [sys.executable, "-m", "mtgr", "load", command, "--url", url, *shape, *arguments]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: the goal is missed, and the document says how
        raise SystemExit(done.stdout + done.stderr)
    trials = [line for line in done.stdout.splitlines() if "/s " in line]
    print("\n".join(trials) + "\n" * bool(trials), end="", flush=True)  # noqa: T201  # a benchmark's output
    return read_run(out)


def show(title: str, run: Run) -> None:
    """One line of latency, one of stages (p50 / p99 / longest)."""
    assert run.latency is not None, run.reasons
    of, outcomes = run.latency, {name: count for name, count in run.outcomes.items() if count}
    print(  # noqa: T201  # a benchmark's output
        f"{title}: {run.rate_per_s:.0f}/s, p50 {of.p50:.2f} ms, p99 {of.p99:.2f} ms, longest "
        f"{of.max:.1f} ms, outcomes {outcomes}\n    "
        + "  ".join(
            f"{stage} {s.p50:.2f}/{s.p99:.2f}/{s.max:.1f}" for stage, s in run.stages.items()
        ),
        flush=True,
    )


def inside(address: str, name: str) -> dict[str, float]:
    """Sums of Triton's own clocks for a model, milliseconds by stage, and its counts."""
    with grpc.insecure_channel(address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelStatistics(
            service_pb2.ModelStatisticsRequest(name=name)
        )
    (model,) = answer.model_stats
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    sums = {stage: getattr(model.inference_stats, stage).ns / 1e6 for stage in stages}
    return {**sums, "requests": model.inference_count, "batches": model.execution_count}


def show_inside(before: dict[str, float], after: dict[str, float]) -> None:
    """What a request spent in Triton in between, on average, and how many shared a run."""
    spent = {name: after[name] - before[name] for name in after}
    requests, batches = spent.pop("requests"), spent.pop("batches")
    stages = "  ".join(f"{name} {sum_ms / requests:.2f}" for name, sum_ms in spent.items())
    print(f"    in Triton, mean: {stages}, {requests / batches:.2f} requests a run")  # noqa: T201  # a benchmark's output


def show_cpu(of_servers: str, run: Run) -> None:
    """CPU that a request took, by process."""
    generator = 1e3 * run.generator.cpu_share / run.rate_per_s
    print(f"    CPU of a request, ms: {of_servers}  load generator {generator:.2f}", flush=True)  # noqa: T201  # a benchmark's output


def main() -> int:
    """Print the figures; they are absolute, of one machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="cuda-graph")
    parser.add_argument("--preset", action="append", choices=sorted(PRESETS))
    parser.add_argument("--workers", type=int, default=1, help="gateway processes")
    parser.add_argument("--instances", type=int, default=1, help="of the engine, in Triton")
    parser.add_argument("--at-once", action="store_true", help="in place of the engine: none")
    parser.add_argument("--light-s", type=float, default=10)
    parser.add_argument("--trial-s", type=float, default=3)
    parser.add_argument("--shared-requests", type=int, default=0)
    given = parser.parse_args()
    home = install()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis_url = stack.enter_context(embedded_server(work / "redis"))
        asyncio.run(load(redis_url))
        material = json.loads(MARKETPLACE.read_text()) | {"users": USERS}
        (work / "material.json").write_text(json.dumps(material))
        for preset in given.preset or ["small"]:
            package = make_package(work, preset, given.kind)
            for batch in (BATCH, 1):
                repository = work / f"{preset}-{batch}"
                repository.mkdir()
                options = ServingOptions(
                    max_candidates=CANDIDATES, batch_requests=batch, instances=given.instances
                )
                model_name = add_model(repository, package, given.kind, options)
                if given.at_once:
                    watch(repository / model_name, work / "model", at_once=True)
                server = TritonServer(home, repository)
                model = {
                    "package": str(package),
                    "engine": given.kind,
                    "backend": "triton",
                    "triton": [server.address],
                    "queue": 256,
                    "shared_requests": given.shared_requests,
                }
                log = work / "gateway.log"
                name = f"{preset}, batches of at most {batch}"
                with server, gateway({"home": model}, redis_url, given.workers, log) as url:
                    runs = [
                        ("run", f"--stages=2:{rate},{given.light_s:g}:{rate}")
                        for rate in (LIGHT_PER_S, STEADY_PER_S)
                    ]
                    search = ("--low=100", f"--trial-s={given.trial_s:g}", "--repeats=2")
                    for what, *how in (*runs, ("find", *search)):
                        before, spent = inside(server.address, model_name), cpu_s()
                        run = measure(url, work / "run.json", what, *how)
                        after = inside(server.address, model_name)
                        show(f"{name}, {what}", run)
                        show_inside(before, after)
                        requests = after["requests"] - before["requests"]
                        show_cpu(cpu_ms_each(spent, cpu_s(), requests), run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
