"""How gateways have a real server load a model."""

import asyncio
from collections.abc import Callable

import pytest

from engine_build.runtime.package import ModelPackage
from engine_build.runtime.tensors import served_name
from service.backends import triton_checks
from service.backends.triton import TritonBackend
from service.deadline import Deadline
from service.errors import DependencyFailed
from tests.chaos import chaos
from tests.triton.server import TritonServer

PATIENT_S = 30.0


def test_a_server_is_found_again_though_its_old_connection_hangs(
    package: ModelPackage, own_triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP tells nobody that the other end has gone: whoever brings the server up again opens a
    new connection."""
    monkeypatch.setattr(triton_checks, "CONTROL_S", 0.5)

    async def run(port: int, stall: Callable[[], None]) -> None:
        address, golden = f"127.0.0.1:{port}", package.golden[0]
        backend = TritonBackend(package, "onnx-cpu", [address], queue=8, http=[own_triton.http])
        await backend.start((golden.request,))
        stall()
        own_triton.kill()
        with pytest.raises(DependencyFailed, match="unavailable"):
            await backend.score(golden.request, Deadline.after(PATIENT_S), "u")
        await asyncio.to_thread(own_triton.start)
        until = Deadline.after(PATIENT_S)
        while backend._mending and until.left():
            await asyncio.sleep(0.05)
        await backend.score(golden.request, Deadline.after(PATIENT_S), "u")
        await backend.close()

    with chaos(int(own_triton.address.rpartition(":")[2])) as way:
        asyncio.run(run(way.port, way.stall))


def test_a_gateway_waits_for_the_load_of_another(
    package: ModelPackage, own_triton: TritonServer
) -> None:
    """Both serve; the server's log tells of one load."""

    def loads() -> int:
        return own_triton.log.read_text().count(f'"loading: {name}:')

    async def run() -> None:
        first, second = (
            TritonBackend(package, "onnx-cpu", [own_triton.address], queue=8) for _ in range(2)
        )
        golden = package.golden[0]
        starting = asyncio.create_task(first.start((golden.request,)))
        while loads() == before:
            await asyncio.sleep(0.01)
        await second.start((golden.request,))
        await starting
        for backend in (first, second):
            await backend.score(golden.request, Deadline.after(PATIENT_S), "u")
            await backend.close()

    name = served_name(package.config, "onnx-cpu")
    before = loads()
    asyncio.run(run())
    assert loads() == before + 1
