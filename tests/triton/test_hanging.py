"""What becomes of connections to a real server whose other end has gone without a word."""

import asyncio

import pytest

from engine_build.runtime.package import ModelPackage
from service.backends import http_connections, triton_grpc
from service.backends.triton import TritonBackend
from service.deadline import Deadline
from service.errors import DependencyFailed
from tests.chaos import ChaosProxy, chaos
from tests.triton.server import TritonServer

PATIENT_S = 30.0
SOON_MS = 500


@pytest.mark.parametrize("by", ["grpc", "http"])
def test_connections_that_hang_are_left(
    by: str, package: ModelPackage, triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP would wait for a quarter of an hour: instead requests time out for a while, and are
    answered over new connections then."""
    monkeypatch.setattr(http_connections, "SILENT_S", SOON_MS / 1000)
    pings = [(name, SOON_MS) for name, _ in triton_grpc.PINGS]
    monkeypatch.setattr(triton_grpc, "PINGS", pings)
    golden = package.golden[0].request

    async def run(control: ChaosProxy, http: ChaosProxy) -> None:
        backend = TritonBackend(
            package,
            "onnx-cpu",
            [f"127.0.0.1:{control.port}"],
            queue=8,
            http=[f"127.0.0.1:{http.port}"] if by == "http" else [],
        )

        async def score(seconds: float) -> None:
            await backend.score(golden, Deadline.after(seconds), "u")

        await backend.start((golden,))
        await asyncio.gather(*(score(PATIENT_S) for _ in range(8)))
        for way in (control, http):
            way.stall()
        with pytest.raises(DependencyFailed, match="timeout"):
            await score(0.2)
        until = Deadline.after(PATIENT_S)
        answered = False
        while not answered and until.left():
            try:
                await score(0.2)
                answered = True
            except DependencyFailed:
                await asyncio.sleep(0.05)
        assert answered
        await backend.close()

    ports = [int(at.rpartition(":")[2]) for at in (triton.address, triton.http)]
    with chaos(ports[0]) as control, chaos(ports[1]) as http:
        asyncio.run(run(control, http))
