"""The fault table: each fault under steady load, what became of every request, none unexplained.

A gateway in a process of its own, Redis and Triton behind a proxy, an open-loop generator here. A
fault begins and ends during the run; afterwards the model must rank with all features again.
*Unexplained* is whatever is late or failed, and every degraded answer or refusal with a reason
that is not of this fault.
"""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import Any

import grpc
import httpx
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from engine_build.triton.model_config import ServingOptions
from engine_build.triton.repository import add_model
from loadtest.material import MARKETPLACE, read_material
from loadtest.open_loop import Limits, generate
from loadtest.outcome import Outcome
from loadtest.samples import Samples
from loadtest.schedule import Stage, schedule
from loadtest.traffic import Mix, Traffic
from tests.bench.overload import load
from tests.chaos import ChaosProxy, Mode, RedisServer, chaos, free_port
from tests.conftest import ROOT
from tests.triton.install import Unavailable, install
from tests.triton.server import TritonServer

RECOVERY_S = 20.0
"""Longest time until all is well again: a breaker's longest pause, and a server's start."""

CROSS = {
    "distance_km": 1.2,
    "eta_minutes": 31,
    "price_ratio": 0.9,
    "category_share": 0.2,
    "orders_at_item": 3,
    "category_at_hour": 0.4,
}
PACKAGE = ROOT / "service" / "demo_package"
REDIS = {
    f"features_{why}" for why in ("timeout", "unavailable", "error", "remembered", "circuit_open")
}
WRITES = {"503 dependency_failed"}
TRITON = {
    f"triton_{why}" for why in ("timeout", "unavailable", "error", "model_missing", "circuit_open")
}
BUSY = {"429 overloaded", "429 expired"}


@dataclass
class World:
    """Everything that can be made to fail."""

    redis: RedisServer
    redis_ways: list[ChaosProxy]
    triton: TritonServer | None
    triton_ways: list[ChaosProxy]
    """Two, as to two servers: a user's requests prefer one."""
    environment: dict[str, str]
    log: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Of the gateway."""
        return f"http://127.0.0.1:{self.port}"

    def serve(self) -> None:
        """Start the gateway, and return once it is ready and ranks by its model."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.fault_server"],
                cwd=ROOT,
                env=os.environ | self.environment | {"MTGR_PORT": str(self.port)},
                stdout=log,
                stderr=log,
            )
        until = monotonic() + 60
        while not self._ready():
            if self.process.poll() is not None or monotonic() > until:
                raise AssertionError(self.log.read_text(errors="replace"))

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill the gateway."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send the gateway a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def limit_files(self, most: int) -> None:
        """As a full disk has it: no file of the gateway's grows beyond this."""
        assert self.process is not None
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    def counted(self, line: str) -> float:
        """The value of a line of the gateway's metrics; 0 where there is none."""
        text = httpx.get(f"{self.url}/metrics").text
        return sum(float(row.rsplit(" ", 1)[1]) for row in text.split("\n") if row.startswith(line))


Act = Callable[[World], None]


@dataclass(frozen=True)
class Fault:
    """A fault, what it may cause, and a metric that must have counted it."""

    name: str
    begin: Act
    end: Act
    reasons: set[str]
    counted: str = ""


def through(which: str, mode: Mode, reasons: set[str], one: bool = False) -> Fault:
    """A fault of the ways to Redis or Triton, or of one of the ways."""

    def set_mode(mode: Mode) -> Act:
        def act(world: World) -> None:
            ways: list[ChaosProxy] = getattr(world, f"{which}_ways")
            for way in ways[: 1 if one else None]:
                way.mode = mode

        return act

    told = {"slow": "slow (50 ms)", "hold": "silent"}.get(mode, mode)
    name = f"one of two {which}s {told}" if one else f"{which} {told}"
    return Fault(name, set_mode(mode), set_mode("pass"), reasons)


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


FAULTS = [
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
    Fault(
        "redis out of memory",
        lambda w: w.redis.configure("maxmemory", "1"),
        lambda w: w.redis.configure("maxmemory", "0"),
        WRITES,
        'mtgr_refused_total{reason="dependency_failed"',
    ),
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
    through("triton", "hold", TRITON | BUSY, one=True),
    through("triton", "reset", TRITON | BUSY, one=True),
]


@contextmanager
def world(with_triton: bool) -> Iterator[World]:
    """Real servers, and a gateway over them; raises Unavailable without a Triton server."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mtgr-")))
        redis = stack.enter_context(RedisServer(directory))
        asyncio.run(load(redis.url))
        redis_way = stack.enter_context(chaos(redis.port))
        model: dict[str, Any] = {"package": str(PACKAGE)}
        triton, triton_ways = None, list[ChaosProxy]()
        if with_triton:
            home, repository = install(), directory / "repository"
            repository.mkdir()
            add_model(repository, PACKAGE, "onnx-cpu", ServingOptions())
            triton = stack.enter_context(TritonServer(home, repository))
            port = int(triton.address.rpartition(":")[2])
            triton_ways = [stack.enter_context(chaos(port)) for _ in range(2)]
            addresses = [f"127.0.0.1:{way.port}" for way in triton_ways]
            model |= {"backend": "triton", "triton": addresses}
        environment = {
            "MTGR_MODELS": json.dumps({"home": model}),
            "MTGR_REDIS_URL": f"redis://127.0.0.1:{redis_way.port}",
            "MTGR_REQUEST_LOG_DIR": str(directory / "requests"),
            "MTGR_REQUEST_LOG_FILE_S": "0.5",
            "MTGR_REDIS_TIMEOUT_MS": "40",
            "OMP_NUM_THREADS": "1",
        }
        served = World(redis, [redis_way], triton, triton_ways, environment, directory / "log")
        served.serve()
        stack.callback(
            lambda: served.process and (served.process.terminate(), served.process.wait())
        )
        yield served


@dataclass(frozen=True)
class Load:
    """What comes meanwhile: a fault begins after `before_s` and lasts `during_s`."""

    before_s: float = 2.0
    during_s: float = 3.0
    after_s: float = 5.0
    per_s: float = 30.0
    deadline_ms: int = 500
    also: frozenset[str] = frozenset()
    """Reasons that are explained by the machine."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    outcomes: dict[str, int]
    reasons: dict[str, dict[str, int]]
    unexplained: list[str]
    worst_ms: float

    def __str__(self) -> str:
        counts = " ".join(f"{self.outcomes[outcome]:6}" for outcome in Outcome)
        causes = {why: n for each in self.reasons.values() for why, n in each.items()}
        told = ", ".join(f"{n} {why}" for why, n in causes.items())
        return f"{self.fault:30}{counts}{len(self.unexplained):12}{self.worst_ms:10.0f}  {told}"


HEAD = f"{'fault':30}{' '.join(f'{o[:6]:>6}' for o in Outcome)}{'unexplained':>12}{'worst ms':>10}"


def suffer(world: World, fault: Fault, load: Load) -> Row:
    """Load through a fault's beginning and end, and until all is well again."""
    traffic = Traffic(read_material(MARKETPLACE), Mix(bad=0.02, deadline_ms=load.deadline_ms))
    failures: list[BaseException] = []

    def acting(act: Act) -> None:
        try:
            act(world)
        except BaseException as error:
            failures.append(error)
            raise

    timers = [
        Timer(load.before_s, acting, [fault.begin]),
        Timer(load.before_s + load.during_s, acting, [fault.end]),
    ]
    for timer in timers:
        timer.start()
    seconds = load.before_s + load.during_s + load.after_s
    plan = schedule([Stage(seconds, load.per_s)], "poisson", most=100_000)
    limits = Limits(give_up_ms=4.0 * load.deadline_ms)
    samples = generate(world.url, traffic, plan, limits).samples
    for timer in timers:
        timer.join()
    assert not failures, failures
    unexplained = list(_unexplained(samples, fault, load.also))
    if not recovers(world):
        unexplained.append("it does not recover")
    if fault.counted and not world.counted(fault.counted):
        unexplained.append(f"{fault.counted} was not counted")
    return Row(
        fault.name,
        samples.outcomes(),
        samples.reasons(),
        unexplained,
        float(samples.latency_ms[~samples.having([Outcome.FAILED])].max(initial=0.0)),
    )


def _unexplained(samples: Samples, fault: Fault, also: frozenset[str]) -> Iterator[str]:
    """What should not have been."""
    killed = fault.name == "gateway killed"
    for outcome, reasons in samples.reasons().items():
        for reason, count in reasons.items():
            gone = reason.startswith(("no connection", "connection closed", "no answer"))
            explained = reason in fault.reasons | also or (killed and gone)
            if not explained and outcome != Outcome.INVALID:
                yield from [f"{outcome}: {reason}"] * count


def recovers(world: World) -> bool:
    """Whether, within RECOVERY_S, the model ranks with all features again."""
    until = monotonic() + RECOVERY_S
    body = {
        "user_id": "u00017",
        "deadline_ms": 2000,
        "context": {"hour": 12, "weekday": 3, "place": 1},
        "candidates": [{"item_id": 10001, "features": CROSS}],
    }
    while monotonic() < until:
        answer = httpx.post(f"{world.url}/v1/rank", json=body)
        if answer.status_code == 200 and answer.json()["reason"] is None:
            return True
    return False


def table(faults: list[Fault], with_triton: bool, load: Load) -> list[Row]:
    """A row a fault, printed as it comes."""
    rows = []
    with world(with_triton) as served:
        suffer(served, Fault("warm", lambda w: None, lambda w: None, set()), Load(0, 0, 2))
        for fault in faults:
            rows.append(suffer(served, fault, load))
            print(rows[-1], flush=True)  # noqa: T201  # a benchmark's output
            for what in sorted(set(rows[-1].unexplained)):
                print(f"    unexplained: {what}")  # noqa: T201
    return rows


def main() -> int:
    """Print the table; the number of unexplained outcomes."""
    print(HEAD)  # noqa: T201  # a benchmark's output
    rows = table(FAULTS, False, Load())
    try:
        rows += table(TRITON_FAULTS, True, Load())
    except Unavailable as reason:
        print(f"NOT CHECKED: no Triton server here: {reason}")  # noqa: T201
    return sum(len(row.unexplained) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
