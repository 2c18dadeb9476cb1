"""Where the time of one call of Triton goes, from the gateway's client to the engine and back.

    python -m tests.bench.triton_call --kind cuda-graph --preset small
    python -m tests.bench.triton_call --at-once --http   # any machine: an engine that costs nothing

Requests of 500 candidates go one after another, 20 a second and then as fast as answers come; with
`--awake` while idle cores are kept from sleeping.
Every moment is on the monotonic clock, which all processes of a machine share: the client's own,
those of Triton's trace, and those of `traced_model.py` in the model's process.
"""

import asyncio
import json
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import monotonic, monotonic_ns, process_time
from typing import Any

import numpy as np
import uvloop
from tritonclient.grpc import service_pb2 as pb

from engine_build.requests import random_batch
from engine_build.runtime.package import open_package
from engine_build.triton.model_config import ServingOptions
from engine_build.triton.repository import add_model
from model_def.config import PRESETS, PackageConfig
from model_def.data.simulator import SCHEMA
from service.backends.triton_endpoint import Endpoint
from service.backends.triton_grpc import GrpcForm
from service.backends.triton_http import HttpForm
from service.breaker import Breaker
from service.deadline import Deadline
from tests.bench.awake import cores_awake
from tests.bench.serving_world import BATCH, CANDIDATES, cpu_ms_each, cpu_s, make_package, watch
from tests.triton.install import install
from tests.triton.server import TritonServer

PATIENCE_S = 60.0
TRACE = {
    "GRPC_WAITREAD_END": "server has read it",
    "HTTP_RECV_END": "server has read it",
    "QUEUE_START": "queued",
    "COMPUTE_START": "scheduled",
    "COMPUTE_INPUT_END": "inputs in shared memory",
    "COMPUTE_OUTPUT_START": "outputs come",
    "GRPC_SEND_START": "server writes",
    "HTTP_SEND_START": "server writes",
}
"""Moments of Triton's trace, in our words."""

Moments = dict[str, int]


class Watched:
    """Requests of a form with an id, and the moments when they were built."""

    def __init__(self, form: GrpcForm | HttpForm):
        self._form = form
        self.calls: dict[str, Moments] = {}

    def request(self, *given: Any) -> Any:
        """The request, numbered: by one more message, which is merged with it, or in its JSON."""
        begins, name = monotonic_ns(), str(len(self.calls))
        request = self._form.request(*given)
        self.calls[name] = {"client begins": begins, "built": monotonic_ns()}
        if isinstance(request, bytes):
            return request + pb.ModelInferRequest(id=name).SerializeToString()
        return request._replace(head=f'{{"id":"{name}",'.encode() + request.head[1:])


async def call(
    server: TritonServer, model: str, config: PackageConfig, given: Namespace, rate: float
) -> dict[str, Moments]:
    """Calls, `rate` a second or, if 0, one after another; prints their CPU."""
    count = int(rate * given.seconds) or 1000
    http = server.http if given.http else None
    endpoint = Endpoint(server.address, http, model, config, None, Breaker("triton"))
    endpoint.send_packed(not given.named)
    sizes = [(SCHEMA.lifelong_cap, SCHEMA.realtime_cap, CANDIDATES)]
    batch = random_batch(SCHEMA, np.random.default_rng(0), sizes)
    await endpoint.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=endpoint.name))
    for _ in range(20):
        await endpoint.score(batch, Deadline.after(PATIENCE_S))
    form = endpoint.calls._form = Watched(endpoint.calls._form)
    others, own, start = cpu_s(), process_time(), monotonic()
    for number in range(count):
        if rate:
            await asyncio.sleep(max(0.0, start + number / rate - monotonic()))
        await endpoint.score(batch, Deadline.after(PATIENCE_S))
        form.calls[str(number)]["client has it"] = monotonic_ns()
    seconds, own = monotonic() - start, process_time() - own
    spent = cpu_ms_each(others, cpu_s(), count)
    print(f"\n{count / seconds:.0f}/s, CPU of a call, ms: client {1e3 * own / count:.2f}  {spent}")  # noqa: T201  # a benchmark's output
    await endpoint.close()
    return form.calls


@contextmanager
def traced(home: Path, work: Path, repository: Path) -> Iterator[TritonServer]:
    """A server that writes its trace to `work`."""
    trace = {"rate": "1", "level": "TIMESTAMPS", "mode": "triton", "triton,file": work / "trace"}
    flags = [f"--trace-config={name}={value}" for name, value in trace.items()]
    with TritonServer(home, repository, flags=flags) as server:
        yield server


def merge(calls: dict[str, Moments], work: Path) -> None:
    """Add the server's moments and the model's to those of each call."""
    ids: dict[int, str] = {}
    moments: dict[int, Moments] = {}
    for file in work.glob("trace*"):
        for entry in json.loads(file.read_text()):
            if request_id := entry.get("request_id"):
                ids[entry["id"]] = request_id
            for stamp in entry.get("timestamps", ()):
                moments.setdefault(entry["id"], {})[stamp["name"]] = stamp["ns"]
    for trace, request_id in ids.items():
        seen = moments[trace]
        calls[request_id] |= {told: seen[name] for name, told in TRACE.items() if name in seen}
    for line in (work / "model").read_text().splitlines():
        request_id, _, seen = json.loads(line)
        if request_id:  # the first calls have none
            calls[request_id] |= seen


def show(calls: dict[str, Moments]) -> None:
    """When each moment came, and how long after the one before, in microseconds."""
    names = [name for name in calls["0"] if all(name in call for call in calls.values())]
    since = np.array([[call[n] - call["client begins"] for n in names] for call in calls.values()])
    order = np.argsort(np.median(since, axis=0), kind="stable")
    since = since[:, order] / 1e3
    steps = np.diff(since, axis=1, prepend=0)
    print(f"{'us':26}{'at p50':>8}{'p99':>8}{'step p50':>10}{'p99':>8}{'longest':>9}")  # noqa: T201  # the same
    for column, place in enumerate(order):
        at = np.percentile(since[:, column], [50, 99])
        step = np.percentile(steps[:, column], [50, 99, 100])
        print(  # noqa: T201  # the same
            f"{names[place]:26}{at[0]:8.0f}{at[1]:8.0f}{step[0]:10.0f}{step[1]:8.0f}{step[2]:9.0f}",
            flush=True,
        )


def main() -> int:
    """Print both time lines; they are absolute, of one machine."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="onnx-cpu")
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--at-once", action="store_true", help="in place of the engine: none")
    parser.add_argument("--named", action="store_true", help="send the named tensors, not one")
    parser.add_argument("--http", action="store_true", help="by HTTP, not by gRPC")
    parser.add_argument("--seconds", type=float, default=8, help="at 20 calls a second")
    parser.add_argument("--awake", action="store_true", help="keep idle cores from sleeping")
    given = parser.parse_args()
    home = install()
    awake = cores_awake() if given.awake else nullcontext()
    with awake, tempfile.TemporaryDirectory() as name:
        root = Path(name)
        package = make_package(root, given.preset, given.kind)
        config = open_package(package).config
        for rate in (20.0, 0.0):
            work, repository = root / f"{rate:g}", root / f"repository-{rate:g}"
            work.mkdir()
            repository.mkdir()
            options = ServingOptions(max_candidates=CANDIDATES, batch_requests=BATCH)
            model = add_model(repository, package, given.kind, options)
            watch(repository / model, work / "model", at_once=given.at_once)
            with traced(home, work, repository) as server:
                calls = uvloop.run(call(server, model, config, given, rate))
            merge(calls, work)
            show(calls)
    return 0


if __name__ == "__main__":
    sys.exit(main())
