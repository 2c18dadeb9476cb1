"""The gateway's Triton backend against a real server: scores, failures by name, and recovery."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from engine_build.runtime.package import ModelPackage, open_package
from service.backends.routing import by_preference
from service.backends.triton import TritonBackend
from service.backends.triton_endpoint import Endpoint
from service.deadline import Deadline
from service.errors import DependencyFailed
from tests.triton.packages import add, retrained
from tests.triton.server import TritonServer

PATIENT_S = 30.0

pytestmark = pytest.mark.parametrize("by", ["grpc", "http"])
"""Both ways keep the same promises."""


def with_backend(
    package: ModelPackage,
    servers: list[TritonServer],
    by: str,
    use: Callable[[TritonBackend], Awaitable[Any]],
    shared_requests: int = 0,
    queue: int = 1000,
) -> Any:
    """What `use` returns, given a started backend whose requests go by gRPC or HTTP."""
    addresses = [server.address for server in servers]
    http = [server.http for server in servers] if by == "http" else []

    async def run() -> Any:
        backend = TritonBackend(
            package, "onnx-cpu", addresses, queue=queue, http=http, shared_requests=shared_requests
        )
        await backend.start(tuple(golden.request for golden in package.golden))
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(run())


async def reason_of(scoring: Awaitable[Any]) -> str:
    """Why it failed."""
    with pytest.raises(DependencyFailed) as failed:
        await scoring
    assert failed.value.dependency == "triton"
    return failed.value.reason


async def recovered(backend: TritonBackend, batch: Any) -> None:
    """Score until the backend does again."""
    deadline = Deadline.after(PATIENT_S)
    while deadline.left():
        try:
            await backend.score(batch, Deadline.after(5), "u")
        except DependencyFailed:
            await asyncio.sleep(0.05)
        else:
            return
    raise AssertionError("the backend did not recover")


@pytest.mark.parametrize("shared_requests", [0, 16])
def test_concurrent_requests_get_their_own_scores(
    by: str, package: ModelPackage, triton: TritonServer, shared_requests: int
) -> None:
    """Requests of all lengths, batched together by the server, score as each alone in PyTorch, sent
    and through shared memory alike."""

    async def use(backend: TritonBackend) -> None:
        requests = [golden for golden in package.golden for _ in range(8)]
        answers = await asyncio.gather(
            *(backend.score(g.request, Deadline.after(PATIENT_S), "u") for g in requests)
        )
        for golden, scores in zip(requests, answers, strict=True):
            for task, expected in golden.scores.items():
                np.testing.assert_allclose(scores[task], expected, atol=1e-4)

    with_backend(package, [triton], by, use, shared_requests)


@pytest.mark.parametrize("shared_requests", [0, 4])
def test_a_hanging_server_is_given_up_at_the_deadline(
    by: str, package: ModelPackage, own_triton: TritonServer, shared_requests: int
) -> None:
    """The failure is named timeout and comes at the deadline; the answer that comes later is
    nobody's, and the next request has its own."""
    batch = package.golden[1].request

    async def use(backend: TritonBackend) -> None:
        own_triton.pause()
        start = monotonic()
        assert await reason_of(backend.score(batch, Deadline.after(0.2), "u")) == "timeout"
        assert 0.15 < monotonic() - start < 2.0
        own_triton.resume()
        scores = await backend.score(batch, Deadline.after(PATIENT_S), "u")
        expected = package.golden[1].scores
        np.testing.assert_allclose(scores["ctr"], expected["ctr"], atol=1e-4)

    with_backend(package, [own_triton], by, use, shared_requests)


def test_no_time_left_is_a_timeout_without_a_call(
    by: str, package: ModelPackage, triton: TritonServer
) -> None:
    """Work that is late before it starts is not sent."""

    async def use(backend: TritonBackend) -> None:
        batch = package.golden[0].request
        assert await reason_of(backend.score(batch, Deadline.after(0), "u")) == "timeout"

    with_backend(package, [triton], by, use)


def test_no_more_requests_than_allowed_are_in_flight(
    by: str, package: ModelPackage, triton: TritonServer
) -> None:
    """The others are refused here, without a call, and those in flight are scored."""

    async def use(backend: TritonBackend) -> None:
        batch = package.golden[0].request
        outcomes = await asyncio.gather(
            *(backend.score(batch, Deadline.after(PATIENT_S), "u") for _ in range(50)),
            return_exceptions=True,
        )
        failures = [str(o) for o in outcomes if isinstance(o, BaseException)]
        assert failures == ["triton: queue_full"] * 43

    with_backend(package, [triton], by, use, queue=7)


def test_a_full_queue_of_the_server_is_named(
    by: str, package_dir: Path, triton: TritonServer, repository: Path, tmp_path: Path
) -> None:
    """Beyond the queue's size requests are rejected at once, and the others are scored."""
    small = retrained(package_dir, tmp_path / "small", f"small-queue-{by}")
    add(repository, small, bounded_queue=True, queue_requests=2, queue_timeout_ms=60_000)
    package = open_package(small)

    async def use(backend: TritonBackend) -> None:
        batch = package.golden[0].request
        outcomes = await asyncio.gather(
            *(backend.score(batch, Deadline.after(PATIENT_S), "u") for _ in range(50)),
            return_exceptions=True,
        )
        failures = [o for o in outcomes if isinstance(o, BaseException)]
        assert {str(failure) for failure in failures} == {"triton: queue_full"}
        assert len(failures) < len(outcomes)

    with_backend(package, [triton], by, use)


def test_a_queued_request_is_dropped_when_its_time_is_up(
    by: str, package_dir: Path, triton: TritonServer, repository: Path, tmp_path: Path
) -> None:
    """A server with a bounded queue does not run what nobody waits for: far fewer runs than
    requests."""
    slow = retrained(package_dir, tmp_path / "slow", f"no-batching-{by}")
    add(repository, slow, batch_requests=1, bounded_queue=True, queue_requests=1000)
    package = open_package(slow)

    async def use(backend: TritonBackend) -> tuple[int, int]:
        before = await runs(backend)
        batch = package.golden[0].request
        outcomes = await asyncio.gather(
            *(backend.score(batch, Deadline.after(0.05), "u") for _ in range(200)),
            return_exceptions=True,
        )
        assert "triton: timeout" in map(str, outcomes)
        while not backend._servers[0].breaker.lets_through:
            await asyncio.sleep(0)
        await backend.score(batch, Deadline.after(PATIENT_S), "u")  # the queue is empty then
        return before, await runs(backend)

    before, after = with_backend(package, [triton], by, use)
    assert after - before < 150


def test_what_was_given_up_is_counted_until_it_is_answered(
    by: str, package: ModelPackage, own_triton: TritonServer
) -> None:
    """A server that hangs is not sent more than it has to do already; it serves again as soon as
    it has done that."""
    batch = package.golden[1].request

    async def use(backend: TritonBackend) -> None:
        own_triton.pause()
        given_up = (reason_of(backend.score(batch, Deadline.after(0.2), "u")) for _ in range(3))
        assert await asyncio.gather(*given_up) == ["timeout"] * 3
        assert await reason_of(backend.score(batch, Deadline.after(0.2), "u")) == "queue_full"
        own_triton.resume()
        await recovered(backend, batch)

    with_backend(package, [own_triton], by, use, queue=3)


async def runs(backend: TritonBackend) -> int:
    """How often the server ran the model."""
    from tritonclient.grpc import service_pb2 as pb

    (server,) = backend._servers
    answer = await server.stub.ModelStatistics(pb.ModelStatisticsRequest(name=server.name))
    return int(answer.model_stats[0].execution_count)


def test_a_model_that_is_gone_is_named_and_loaded_again(
    by: str, package: ModelPackage, own_triton: TritonServer
) -> None:
    """An unloaded model fails requests as model_missing, then serves again by itself."""
    from tritonclient.grpc import service_pb2 as pb

    async def use(backend: TritonBackend) -> None:
        batch = package.golden[1].request
        (server,) = backend._servers
        await server.stub.RepositoryModelUnload(
            pb.RepositoryModelUnloadRequest(model_name=server.name)
        )
        assert await reason_of(backend.score(batch, Deadline.after(5), "u")) == "model_missing"
        await recovered(backend, batch)

    with_backend(package, [own_triton], by, use)


@pytest.mark.parametrize("shared_requests", [0, 4])
def test_a_server_killed_and_started_again_serves_again(
    by: str, package: ModelPackage, own_triton: TritonServer, shared_requests: int
) -> None:
    """While it is gone each request fails at once as unavailable; afterwards the model, which the
    new server was not told to load, is loaded, verified and served."""
    batch = package.golden[1].request

    async def use(backend: TritonBackend) -> None:
        own_triton.kill()
        for _ in range(3):
            start = monotonic()
            assert await reason_of(backend.score(batch, Deadline.after(5), "u")) == "unavailable"
            assert monotonic() - start < 2.0
        await asyncio.to_thread(own_triton.start)
        await recovered(backend, batch)

    with_backend(package, [own_triton], by, use, shared_requests)


def test_a_users_requests_stay_with_one_server_while_it_is_up(
    by: str, package: ModelPackage, triton: TritonServer, own_triton: TritonServer
) -> None:
    """Each user keeps a server; when it dies, requests go to the other one without a failure, and
    only that server's users move."""
    addresses = [triton.address, own_triton.address]

    async def use(backend: TritonBackend) -> None:
        users = [f"user {n}" for n in range(40)]
        own = {user: by_preference(user, backend._servers)[0].address for user in users}
        assert set(own.values()) == set(addresses)
        own_triton.kill()
        for user in users:
            await backend.score(package.golden[1].request, Deadline.after(PATIENT_S), user)
        stayed = [user for user in users if own[user] == triton.address]
        assert stayed
        for user in stayed:
            assert by_preference(user, backend._servers)[0].address == triton.address

    with_backend(package, [triton, own_triton], by, use)


def test_memory_that_cannot_be_shared_is_gone_without(
    by: str, package: ModelPackage, triton: TritonServer
) -> None:
    """A server that has forgotten the region, or never mapped it, is sent the values instead."""
    from tritonclient.grpc import service_pb2 as pb

    async def use(backend: TritonBackend) -> None:
        (server,) = backend._servers
        assert isinstance(server, Endpoint)
        assert server.shares_memory
        await server.stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
        golden = package.golden[1]
        scores = await backend.score(golden.request, Deadline.after(PATIENT_S), "u")
        np.testing.assert_allclose(scores["ctr"], golden.scores["ctr"], atol=1e-4)
        assert not server.shares_memory

    with_backend(package, [triton], by, use, shared_requests=4)
