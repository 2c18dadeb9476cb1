"""What a ranking request costs the gateway, stage by stage, and beside others doing the same job.

python -m tests.bench.gateway [seconds a run]

One server at a time has the first core; the load and a real Valkey have the second. CPU time is the
server's (user and system, all its processes), over the requests that it answered. Each server has
many short windows, its shapes of body in turns, and of each shape the window with the least CPU
counts: what other tenants of the host do only ever adds to it, and has been seen to add half. The
mean of all windows stands beside it.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from socket import create_connection, create_server

import psutil

from service.features.embedded import embedded_server
from tests.bench import gateway_job as job
from tests.bench.gateway_load import Load, load, post
from tests.bench.timing import report

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 3
"""As many as admission works on at a time in calm: enough to keep a core busy, and none waits."""

WARM_S, WINDOW_S = 1.0, 0.5
CPU_BARS_MS = {"MessagePack columns": 0.45, "JSON columns": 0.6, "JSON rows": 1.0}
RATE_BARS = {"MessagePack columns": 7.0, "JSON rows": 3.0}
SHOWN = ("fastapi", "uvicorn", "pydantic", "msgspec", "redis", "numpy", "litserve")


@dataclass(frozen=True)
class Run:
    """One server under one load, for a window."""

    load: Load
    cpu_ms: float
    """Of a request."""

    @property
    def requests(self) -> int:
        """Answered."""
        return len(self.load.latencies_s)


@contextmanager
def server(kind: str, redis_url: str) -> Iterator[tuple[int, psutil.Process]]:
    """A server of `gateway_server` on the first core, once it accepts."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.bench.gateway_server", kind, str(port), redis_url]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
    )
    try:
        while not accepts(port):
            assert process.poll() is None, f"{kind} ended"
        yield port, psutil.Process(process.pid)
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if alive(process) else []
        process.terminate()
        process.wait()
        for child in children:
            if child.is_running():
                child.kill()


def alive(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it has not ended."""
    return process.poll() is None


def accepts(port: int) -> bool:
    """Whether a server ranks there."""
    body = job.bodies("JSON rows")[0]
    try:
        with create_connection(("127.0.0.1", port), 5) as socket:
            socket.sendall(post("/v1/rank", body, job.MEDIA["JSON rows"]))
            return socket.recv(12) == b"HTTP/1.1 200"
    except OSError:
        time.sleep(0.1)  # between two tries; a server takes a second or more to start
        return False


def cpu_s(process: psutil.Process) -> float:
    """User and system seconds of a process and those that it started, to the nanosecond."""
    spent = 0
    for each in (process, *process.children(recursive=True)):
        for task in Path(f"/proc/{each.pid}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def measure(
    kind: str, shapes: tuple[str, ...], redis_url: str, seconds: float, connections: int
) -> dict[str, Run]:
    """One server under each shape of body: of each its least window."""
    windows: dict[str, list[Run]] = {shape: [] for shape in shapes}
    with server(kind, redis_url) as (port, process):
        requests = {
            shape: [post("/v1/rank", body, job.MEDIA[shape]) for body in job.bodies(shape)]
            for shape in shapes
        }
        for shape in shapes:
            load(port, requests[shape], WARM_S, connections)
        for _ in range(round(seconds / WINDOW_S)):
            for shape, runs in windows.items():
                before = cpu_s(process)
                done = load(port, requests[shape], WINDOW_S, connections)
                spent = cpu_s(process) - before
                runs.append(Run(done, 1e3 * spent / len(done.latencies_s)))
    least = {shape: min(runs, key=lambda run: run.cpu_ms) for shape, runs in windows.items()}
    for shape, run in least.items():
        runs = windows[shape]
        mean = sum(r.cpu_ms * r.requests for r in runs) / sum(r.requests for r in runs)
        say(
            f"  {kind:<10} {shape:<20} {run.load.per_second:8,.0f}/s  {run.cpu_ms:7.3f} ms CPU"
            f" (mean {mean:.3f})  p50 {run.load.percentile_ms(50):6.2f}"
            f"  p99 {run.load.percentile_ms(99):6.2f} ms"
        )
    return least


def say(line: str) -> None:
    """A line of the report."""
    print(line, flush=True)  # noqa: T201  # a benchmark's output


def stages(runs: dict[str, Run]) -> None:
    """A row a stage: CPU milliseconds with one request at a time; the rest is HTTP and counting."""
    say(f"\n  {'CPU ms by stage':<16}" + "".join(f"{shape:>22}" for shape in runs))
    names = [name for name in next(iter(runs.values())).load.stages_ms if name != "total"]
    for name in names:
        row = [run.load.stages_ms[name] for run in runs.values()]
        say(f"  {name:<16}" + "".join(f"{value:22.3f}" for value in row))
    rest = [run.cpu_ms - run.load.stages_ms["total"] for run in runs.values()]
    say(f"  {'HTTP, metrics':<16}" + "".join(f"{value:22.3f}" for value in rest))
    say(f"  {'whole':<16}" + "".join(f"{run.cpu_ms:22.3f}" for run in runs.values()))


def main() -> int:
    """Print all; the number of bars missed."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 6.0
    os.sched_setaffinity(0, {LOAD_CORE})
    versions = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    say(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    say(versions)
    every = tuple(job.MEDIA)
    sizes = ", ".join(f"{shape} {len(job.bodies(shape)[0]):,} bytes" for shape in every)
    say(f"{job.CANDIDATES} candidates x {job.NUMBERS} numbers, top {job.TOP_K}: {sizes}\n")
    with (
        tempfile.TemporaryDirectory(prefix="mtgr-") as directory,
        embedded_server(Path(directory)) as url,
    ):
        job.fill(url)
        echo = measure("echo", every, url, seconds / 2, CONNECTIONS)
        ours = measure("ours", every, url, seconds, CONNECTIONS)
        plain = measure("plain", ("JSON rows",), url, seconds, CONNECTIONS)["JSON rows"]
        measure("litserve", ("JSON rows",), url, seconds, CONNECTIONS)
        measure("unknown", every, url, seconds, CONNECTIONS)
        measure("cached", every, url, seconds, CONNECTIONS)
        measure("collected", ("JSON rows",), url, seconds, CONNECTIONS)
        stages(measure("staged", every, url, seconds / 2, connections=1))
    say("")
    held = [
        report(f"CPU ms of a request, {shape}", ours[shape].cpu_ms, bar, at_least=False)
        for shape, bar in CPU_BARS_MS.items()
    ]
    held += [
        report(
            f"requests/s over plain FastAPI + pydantic (JSON rows), {shape}",
            ours[shape].load.per_second / plain.load.per_second,
            bar,
        )
        for shape, bar in RATE_BARS.items()
    ]
    for shape in every:
        ratio = ours[shape].cpu_ms / echo[shape].cpu_ms
        say(f"      CPU over the bare echo's, {shape}: {ratio:.1f}")
    return held.count(False)


if __name__ == "__main__":
    sys.exit(main())
