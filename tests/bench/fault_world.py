"""Everything that can be made to fail: a gateway in a process of its own, Redis and Triton behind
proxies."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from engine_build.triton.model_config import ServingOptions
from engine_build.triton.repository import add_model
from tests.bench.overload_world import load
from tests.chaos import ChaosProxy, RedisServer, chaos, free_port
from tests.conftest import ROOT
from tests.triton.install import install
from tests.triton.server import TritonServer

PACKAGE = ROOT / "service" / "demo_package"


@dataclass
class World:
    """Everything that can be made to fail."""

    redis: RedisServer
    redis_ways: list[list[ChaosProxy]]
    triton: TritonServer | None
    triton_ways: list[list[ChaosProxy]]
    """By server, both ports'. Two, as to two servers: a user's requests prefer one."""
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

    def signal(self, number: int) -> None:
        """Send the gateway a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill_worker(self) -> None:
        """Kill one of several workers; the supervisor starts another."""
        assert self.process is not None
        pid = self.process.pid
        worker, *_ = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)

    def limit_files(self, most: int) -> None:
        """As a full disk has it: no file of the gateway's grows beyond this."""
        assert self.process is not None
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    def counted(self, line: str) -> float:
        """The value of a line of the gateway's metrics; 0 where there is none."""
        text = httpx.get(f"{self.url}/metrics").text
        return sum(float(row.rsplit(" ", 1)[1]) for row in text.split("\n") if row.startswith(line))


@contextmanager
def world(triton_by: str, workers: int) -> Iterator[World]:
    """Real servers, and a gateway of so many workers over them, which asks Triton by "grpc" or
    "http", if at all. Raises Unavailable without a Triton server."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mtgr-")))
        redis = stack.enter_context(RedisServer(directory))
        asyncio.run(load(redis.url))
        redis_way = stack.enter_context(chaos(redis.port))
        model: dict[str, Any] = {"package": str(PACKAGE)}
        triton, triton_ways = None, list[list[ChaosProxy]]()
        if triton_by:
            home, repository = install(), directory / "repository"
            repository.mkdir()
            add_model(repository, PACKAGE, "onnx-cpu", ServingOptions())
            triton = stack.enter_context(TritonServer(home, repository))
            ports = [int(at.rpartition(":")[2]) for at in (triton.address, triton.http)]
            triton_ways = [[stack.enter_context(chaos(p)) for p in ports] for _ in range(2)]
            grpc, http = (
                [f"127.0.0.1:{w.port}" for w in ways] for ways in zip(*triton_ways, strict=True)
            )
            model |= {"backend": "triton", "triton": grpc}
            model |= {"triton_http": http} if triton_by == "http" else {}
        environment = {
            "MTGR_MODELS": json.dumps({"home": model}),
            "MTGR_REDIS_URL": f"redis://127.0.0.1:{redis_way.port}",
            "MTGR_REQUEST_LOG_DIR": str(directory / "requests"),
            "MTGR_REQUEST_LOG_FILE_S": "0.5",
            "MTGR_WORKERS": str(workers),
            "OMP_NUM_THREADS": "1",
        }
        served = World(redis, [[redis_way]], triton, triton_ways, environment, directory / "log")
        served.serve()
        stack.callback(
            lambda: served.process and (served.process.terminate(), served.process.wait())
        )
        yield served
