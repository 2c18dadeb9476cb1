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
    """What `mtgr load COMMAND` writes of equal requests in MessagePack; prints a search's runs.

    The generator waits awake: it is not what is measured.
    """
    shape = [
        "--json-rows=0",
        "--json-columns=0",
        "--bad=0",
        "--events=0",
        "--cold-users=0",
        "--busy-wait",
    ]
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


ROW = "{:<40}{:>5}" + 12 * "{:>9}"
HEAD = ROW.format(
    *("p50 and p99, ms", "/s", "latency", "", "longest", "lag", "", "sent", ""),
    *("stages", "features", "backend", "", "Triton"),
)
"""Latency is from when a request was due: the generator's lag, and the rest from when it was sent.
Of that the gateway's stages (p50 each, added up), features and backend; Triton's own mean."""


def show(title: str, run: Run, before: dict[str, float], after: dict[str, float], cpu: str) -> None:
    """A line under `HEAD`; one more of all stages at p50 and p99, requests of Triton's runs and
    CPU; outcomes that are no answers in full."""
    of, sent, lag, stages = run.latency, run.since_sent, run.generator, run.stages
    assert of is not None, run.reasons
    assert sent is not None, run.reasons
    spent = {name: after[name] - before[name] for name in after}
    requests, batches = spent.pop("requests"), spent.pop("batches")
    numbers = [of.p50, of.p99, of.max, lag.lag_p50_ms or 0.0, lag.lag_p99_ms or 0.0]
    numbers += [sent.p50, sent.p99, sum(stage.p50 for stage in stages.values())]
    numbers += [stages["features"].p50, stages["backend"].p50, stages["backend"].p99]
    numbers += [sum(spent.values()) / requests]
    others = {name: count for name, count in run.outcomes.items() if count and name != "answered"}
    generator = 1e3 * lag.cpu_share / run.rate_per_s
    print(  # noqa: T201  # a benchmark's output
        ROW.format(title, f"{run.rate_per_s:.0f}", *(f"{number:.2f}" for number in numbers))
        + f"\n    CPU {cpu} generator {generator:.2f}; {requests / batches:.2f} requests a run; "
        + " ".join(f"{name} {s.p50:.2f}/{s.p99:.2f}" for name, s in stages.items())
        + (f"; not answered: {others}" if others else ""),
        flush=True,
    )


def figures(title: str, run: Run, cpu: str) -> dict[str, Any]:
    """The same for a JSON document, each trial of a search with it."""
    kept = ("sent", "outcomes", "latency", "since_sent", "generator", "stages", "steps", "missed")
    built: dict[str, Any] = msgspec.to_builtins({name: getattr(run, name) for name in kept})
    return {"title": title, "rate_per_s": run.rate_per_s, "cpu_ms": cpu} | built
