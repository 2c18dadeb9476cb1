"""The fault table: every dependency failing in every way under steady load, none unexplained.

`python -m tests.bench.faults [redis|engine|gateway|workers|triton ...]`: these parts, or all.
"""

import resource
import signal
import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.bench.fault_engine import SIGNALS
from tests.bench.fault_table import HEAD, Act, Fault, Load, Row, table
from tests.bench.fault_world import World
from tests.chaos import ChaosProxy, Mode
from tests.triton.install import Unavailable
from tests.triton.server import TritonServer

REDIS = {
    f"features_{why}" for why in ("timeout", "unavailable", "error", "remembered", "circuit_open")
}
WRITES = {"503 dependency_failed"}
TRITON = {
    f"triton_{why}"
    for why in ("timeout", "unavailable", "error", "model_missing", "circuit_open", "queue_full")
}
ENGINE = {f"backend_{why}" for why in ("timeout", "error", "queue_full", "circuit_open")}
BUSY = {"429 overloaded", "429 expired"}


def through(which: str, mode: Mode, reasons: set[str], one: bool = False) -> Fault:
    """A fault of the ways to Redis or Triton, or of one of the ways."""

    def set_mode(mode: Mode) -> Act:
        def act(world: World) -> None:
            servers: list[list[ChaosProxy]] = getattr(world, f"{which}_ways")
            for way in chain.from_iterable(servers[: 1 if one else None]):
                way.mode = mode

        return act

    told = {"slow": "slow (50 ms)", "hold": "silent"}.get(mode, mode)
    name = f"one of two {which}s {told}" if one else f"{which} {told}"
    return Fault(name, set_mode(mode), set_mode("pass"), reasons)


def gone(which: str, reasons: set[str]) -> Fault:
    """The other end of every open connection to Redis or Triton is gone without a word."""

    def act(world: World) -> None:
        for way in chain.from_iterable(getattr(world, f"{which}_ways")):
            way.stall()

    return Fault(f"{which}, connections gone", act, lambda w: None, reasons)


def engine(mode: str, reasons: set[str], name: str = "") -> Fault:
    """A fault of the engine in the gateway's process."""

    def send(mode: str) -> Act:
        return lambda world: world.signal(SIGNALS[mode])

    return Fault(f"engine {name or mode}", send(mode), send("well"), reasons)


def on_triton(act: Callable[[TritonServer], None]) -> Act:
    """Do something to Triton."""

    def acted(world: World) -> None:
        assert world.triton is not None
        act(world.triton)

    return acted


def unload(server: TritonServer) -> None:
    """Take its models away; the gateway loads them again."""
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        for model in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models:
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=model.name))


REDIS_FAULTS = [
    Fault("none", lambda w: None, lambda w: None, set()),
    Fault("redis killed", lambda w: w.redis.kill(), lambda w: w.redis.start(), REDIS | WRITES),
    Fault(
        "redis frozen",
        lambda w: w.redis.signal(signal.SIGSTOP),
        lambda w: w.redis.signal(signal.SIGCONT),
        REDIS | WRITES,
    ),
    through("redis", "slow", REDIS | WRITES),
    through("redis", "reset", REDIS | WRITES),
    through("redis", "garbage", REDIS | WRITES),
    gone("redis", REDIS | WRITES),
    Fault(
        "redis out of memory",
        lambda w: w.redis.configure("maxmemory", "1"),
        lambda w: w.redis.configure("maxmemory", "0"),
        WRITES,
        'mtgr_refused_total{reason="dependency_failed"',
    ),
]
ENGINE_FAULTS = [
    engine("erroring", {"backend_error", "backend_circuit_open"}),
    engine("slow", ENGINE | BUSY, "slow (50 ms)"),
    engine("frozen", ENGINE | BUSY),
]
GATEWAY_FAULTS = [
    Fault("gateway killed", lambda w: w.kill(), lambda w: w.serve(), {"503 not_ready"}),
    Fault(
        "disk full for the request log",
        lambda w: w.limit_files(0),
        lambda w: w.limit_files(resource.RLIM_INFINITY),
        set(),
        'mtgr_request_log_total{outcome="disk_full"}',
    ),
    Fault(
        "clock an hour ahead",
        lambda w: w.signal(signal.SIGUSR1),
        lambda w: w.signal(signal.SIGUSR2),
        set(),
    ),
    Fault(
        "clock an hour back",
        lambda w: w.signal(signal.SIGUSR2),
        lambda w: w.signal(signal.SIGUSR1),
        {"422 invalid_value"},  # events from an hour ahead, as this gateway sees them
    ),
]
WORKER_FAULTS = [
    Fault(
        "one of two workers killed", lambda w: w.kill_worker(), lambda w: None, {"503 not_ready"}
    ),
]
TRITON_FAULTS = [
    Fault("triton, none", lambda w: None, lambda w: None, set()),
    Fault(
        "triton killed",
        on_triton(TritonServer.kill),
        on_triton(TritonServer.start),
        TRITON | BUSY,
    ),
    Fault(
        "triton frozen",
        on_triton(TritonServer.pause),
        on_triton(TritonServer.resume),
        TRITON | BUSY,
    ),
    Fault("triton without the model", on_triton(unload), lambda w: None, TRITON | BUSY),
    through("triton", "slow", TRITON | BUSY),
    through("triton", "reset", TRITON | BUSY),
    through("triton", "garbage", TRITON | BUSY),
    gone("triton", TRITON | BUSY),
    through("triton", "hold", TRITON | BUSY, one=True),
    through("triton", "reset", TRITON | BUSY, one=True),
]


PARTS: dict[str, tuple[list[Fault], dict[str, Any]]] = {
    "redis": (REDIS_FAULTS, {}),
    "engine": (ENGINE_FAULTS, {}),
    "gateway": (GATEWAY_FAULTS, {}),
    "workers": (WORKER_FAULTS, {"workers": 2}),
    "triton": (TRITON_FAULTS, {"triton_by": "grpc"}),
    "triton by http": (TRITON_FAULTS, {"triton_by": "http"}),
}
"""Faults, and the world that they need."""


def main(parts: list[str]) -> int:
    """Print the table; the number of unexplained outcomes."""
    print(HEAD)  # noqa: T201  # a benchmark's output
    rows: list[Row] = []
    for part in parts or PARTS:
        faults, needed = PARTS[part]
        try:
            rows += table(faults, Load(), **needed)
        except Unavailable as reason:
            print(f"NOT CHECKED: {part}: {reason}")  # noqa: T201
    return sum(len(row.unexplained) for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
