"""A gateway of the demo package in a process of its own, a Redis that can be restarted, and what
is done to both while they serve."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_server
from threading import Event, Thread
from time import monotonic, sleep, time

import httpx
from psutil import NoSuchProcess, Process

from model_def.data.past import Past
from model_def.data.simulator import Marketplace
from model_def.data.traffic import SCENE, latest_snapshot
from service.demo import PACKAGE, load
from service.features.embedded import embedded_server

WATCH_S = 2.0
"""Between two looks at memory and open files."""

TOKEN = "soak"

COUNTED = ("mtgr_requests_total", "mtgr_refused_total", "mtgr_invalid_total", "mtgr_events_total")


@dataclass
class World:
    """The service under test."""

    directory: Path
    workers: int
    url: str = ""
    marks: list[tuple[float, str]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, MiB resident) of the gateway's processes."""
    files: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, open files) of the same, without callers' connections."""
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._redis = ExitStack()
        self._gateway: subprocess.Popen[bytes] | None = None
        self._packages = [self.directory / "package-a", self.directory / "package-b"]
        self._turn = 0

    def start(self) -> None:
        """Redis, the demo's users, the gateway; returns once it is ready."""
        for package in self._packages:
            shutil.copytree(PACKAGE, package)
        redis_url = self._redis.enter_context(embedded_server(self.directory / "redis"))
        past = Past(Marketplace(), latest_snapshot(int(time() * 1000)))
        asyncio.run(load(past, redis_url))
        with create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._settings = self.directory / "settings.toml"
        self._settings.write_text("")
        models = {SCENE: {"package": str(self._packages[0])}}
        command = [sys.executable, "-m", "mtgr", "serve", "--models", json.dumps(models)]
        command += ["--port", str(port), "--redis-url", redis_url, "--admin-token", TOKEN]
        command += ["--settings-file", str(self._settings)]
        command += ["--capture-dir", str(self.directory / "captures"), "--capture-files", "50"]
        if self.workers > 1:
            command += ["--workers", str(self.workers)]
        with (self.directory / "gateway.log").open("wb") as log:
            self._gateway = subprocess.Popen(command, stdout=log, stderr=log)
        self.await_ready()

    def await_ready(self) -> None:
        """Ask until the gateway is ready."""
        while True:
            assert self._gateway.poll() is None, "the gateway ended; see gateway.log"
            try:
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                continue

    def end(self) -> int:
        """Drain the gateway; its exit status. A second time it only tells."""
        status = 0
        if self._gateway is not None:
            self._gateway.terminate()
            status = self._gateway.wait(60)
        self._redis.close()
        return status

    # What is done to it.

    def restart_redis(self) -> None:
        """Down, and up again on the same data."""
        self._redis.close()
        self._redis = ExitStack()
        self._redis.enter_context(embedded_server(self.directory / "redis"))

    def reload(self) -> None:
        """Another top_k by SIGHUP; every third time, settings that must be refused."""
        self._turn += 1
        scene = f'[scenes.{SCENE}]\nmodel = "{SCENE}"\ntop_k = {40 + self._turn % 10}\n'
        self._settings.write_text("port = 1\n" * (self._turn % 3 == 0) + scene)
        self._gateway.send_signal(signal.SIGHUP)

    def switch_engine(self) -> None:
        """The other copy of the package takes over."""
        self._packages.reverse()
        answer = httpx.post(
            f"{self.url}/v1/models/{SCENE}/switch",
            json={"package": str(self._packages[0])},
            headers={"authorization": f"Bearer {TOKEN}"},
            timeout=60,
        )
        answer.raise_for_status()

    def kill_worker(self) -> None:
        """SIGKILL one of several worker processes; another takes its place."""
        os.kill(max(self.processes() - {self._gateway.pid}), signal.SIGKILL)

    # What is seen of it.

    def processes(self) -> set[int]:
        """The gateway and all that it has started."""
        found, new = set[int](), {self._gateway.pid}
        while new:
            found |= new
            new = {child for pid in new for child in children(pid)} - found
        return found

    def look(self, at_s: float) -> None:
        """Note memory and open files, callers' connections apart: those come with the load."""
        memory = files = 0
        port = httpx.URL(self.url).port
        for pid in self.processes():
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                files += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - numbers of them only
                files -= sum(c.laddr.port == port for c in Process(pid).net_connections("tcp"))
            except (OSError, NoSuchProcess):
                continue  # it has just ended
            memory += pages * os.sysconf("SC_PAGE_SIZE")
        self.memory.append((at_s, memory / (1 << 20)))
        self.files.append((at_s, float(files)))

    def settled(self) -> dict[str, float]:
        """Counters by line of /metrics, once those of requests no longer move: what callers gave
        up may still be at work."""
        last: dict[str, float] = {}
        while True:
            now = {name: v for name, v in self._metrics().items() if name.startswith(COUNTED)}
            if now == last:
                return now
            last = now
            sleep(WATCH_S)

    def _metrics(self) -> dict[str, float]:
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


def children(pid: int) -> set[int]:
    """Child processes of a process; none once it has ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return {int(c) for task in tasks for c in (task / "children").read_text().split()}
    except OSError:
        return set()


@contextmanager
def disturbed(world: World, plan: list[tuple[float, str, Callable[[], None]]]) -> Iterator[None]:
    """While the block runs, watch the world, and do to it what `plan` says: (when, name, deed)."""
    start, over = monotonic(), Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            world.look(monotonic() - start)

    def disturb() -> None:
        for at_s, name, deed in plan:
            if over.wait(max(0.0, start + at_s - monotonic())):
                return
            world.marks.append((monotonic() - start, name))
            try:
                deed()
            except Exception as error:  # the soak goes on, and fails in the end
                world.failures.append(f"{name} at {at_s:.0f} s: {error!r}")

    threads = [Thread(target=watch), Thread(target=disturb)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextmanager
def world(workers: int) -> Iterator[World]:
    """A world in a directory of its own, which stays if something failed."""
    here = World(Path(tempfile.mkdtemp(prefix="mtgr-")), workers)
    try:
        here.start()
        yield here
    finally:
        here.end()
    if not here.failures:
        shutil.rmtree(here.directory)
