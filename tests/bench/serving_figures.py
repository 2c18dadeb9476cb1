"""What the benchmarks of serving measure and print: a load, Triton's own clocks, CPU by process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import msgspec
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from loadtest.run import Run, read_run
from tests.bench.serving_world import CANDIDATES
from tests.conftest import ROOT

GOAL_MS = 20.0


def measure(url: str, out: Path, command: str, *arguments: str) -> Run:
    """What `mtgr load COMMAND` writes of equal requests in MessagePack; prints a search's runs."""
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


def figures(title: str, run: Run, cpu: str) -> dict[str, Any]:
    """The same for a JSON document, each trial of a search with it."""
    kept = ("sent", "outcomes", "latency", "stages", "steps", "missed")
    built: dict[str, Any] = msgspec.to_builtins({name: getattr(run, name) for name in kept})
    return {"title": title, "rate_per_s": run.rate_per_s, "cpu_ms": cpu} | built
