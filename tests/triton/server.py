"""A tritonserver process of the tests' own: started, killed, restarted on one port."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc

from engine_build.triton.repository import launch_command
from tests.conftest import ROOT
from tests.triton.install import library_path

START_S = 120
"""Longest wait for the server; it answers once the models that it was told to load are loaded."""


END_S = 40
"""Longest wait for its end; it gives requests in flight 30 s."""


class TritonServer:
    """Serves `repository` by the generated launch command; a context manager.

    Its metrics are at `metrics_port`, if that is given; `flags` are further ones of the server.
    """

    def __init__(
        self,
        home: Path,
        repository: Path,
        models: Sequence[str] = (),
        metrics_port: int = 0,
        flags: Sequence[str] = (),
    ):
        self._home, self._repository, self._models = home, repository, models
        self._flags = flags
        self._metrics = (
            [f"--metrics-port={metrics_port}", "--metrics-interval-ms=500"]
            if metrics_port
            else ["--allow-metrics=false"]
        )
        with ExitStack() as both:
            free = [both.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
            self._grpc, self._http = (one.getsockname()[1] for one in free)
        self.address, self.http = f"127.0.0.1:{self._grpc}", f"127.0.0.1:{self._http}"
        self.log = repository.with_name(f"{repository.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return once it answers."""
        command = launch_command(
            self._repository,
            self._models,
            grpc_port=self._grpc,
            http_port=self._http,
            server=str(self._home / "bin" / "tritonserver"),
        )
        offline = [
            f"--backend-directory={self._home / 'backends'}",
            "--grpc-address=127.0.0.1",
            "--http-address=127.0.0.1",
            *self._metrics,
            *self._flags,
        ]
        # The Python backend finds its environment as a shell would: the first python3 on PATH.
        first = {
            "PATH": str(Path(sys.executable).parent),
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": library_path(),
        }
        environment = os.environ | {
            name: os.pathsep.join(filter(None, [place, os.environ.get(name)]))
            for name, place in first.items()
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*shlex.split(command), *offline],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with grpc.insecure_channel(self.address) as channel:
            ready = grpc.channel_ready_future(channel)
            try:
                ready.result(START_S)
            except grpc.FutureTimeoutError:
                raise AssertionError(self.log.read_text(errors="replace")) from None

    def pause(self) -> None:
        """Have it hang: it keeps its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would, with the models' processes."""
        self._signal(signal.SIGKILL)
        self._wait()

    def close(self) -> None:
        """End it in order, if it runs."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _wait(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process = None

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
