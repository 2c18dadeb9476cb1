"""How gateways have a real server load a model."""

import asyncio

from engine_build.runtime.package import ModelPackage
from engine_build.runtime.tensors import served_name
from service.backends.triton import TritonBackend
from service.deadline import Deadline
from tests.triton.server import TritonServer

PATIENT_S = 30.0


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
