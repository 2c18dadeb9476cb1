"""A listening socket in the event loop: its connections are shared out, and its end loses none.

Of several workers the kernel wakes any, and whoever is first takes a connection: of sixteen, one
worker of four was seen to get none and another nine, and callers keep their connections. So a
worker that has more than another stands back a moment.

Closing resets what the kernel has completed and nobody has taken. Between the last look at the
queue and the close of the last holder, perhaps a worker that is late to hear of the end, more would
come. So the kernel is told first to drop what asks for a connection: who asks tries again after a
second, and is refused, as nobody listens any more.
"""

import asyncio
import ctypes
import errno
import logging
import struct
from collections.abc import Callable
from contextlib import suppress
from socket import SOL_SOCKET, socket

log = logging.getLogger("mtgr")

TAKEN_AT_ONCE = 16
"""Connections in one round of the event loop: when rounds are long, as under overload, many new
callers at once would wait for as many rounds."""

STAND_BACK_S = 0.002
"""How long a connection is left to a worker that has fewer."""

PAUSE_S = 1.0
"""Until the next try when the system gives no more connections."""

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

SO_ATTACH_FILTER = 26
"""Of Linux, <asm-generic/socket.h>."""

DROP = struct.pack("HBBI", 0x06, 0, 0, 0)
"""struct sock_filter, of <linux/filter.h>: return 0, for none of a packet's bytes is kept."""


def let_nobody_in(listener: socket) -> None:
    """Complete no more connections, in any process that shares the socket; those that wait in its
    queue can be accepted still, and those that were accepted are as they were."""
    program = ctypes.create_string_buffer(DROP, len(DROP))
    told = struct.pack("HP", 1, ctypes.addressof(program))  # struct sock_fprog
    listener.setsockopt(SOL_SOCKET, SO_ATTACH_FILTER, told)


class Listener:
    """Makes a protocol of each connection of `port` that this process takes.

    `has_more` tells whether another process that takes connections of the port has fewer.
    """

    def __init__(
        self, port: socket, protocol: Callable[[], asyncio.Protocol], has_more: Callable[[], bool]
    ):
        self._port, self._protocol, self._has_more = port, protocol, has_more
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = set[asyncio.Task[None]]()
        port.setblocking(False)
        self._loop.add_reader(port, self._ready)

    @property
    def on_the_way(self) -> int:
        """Connections that are taken, and have no protocol yet."""
        return len(self._tasks)

    async def close(self) -> None:
        """Let nobody in any more, take what has been completed, and close the socket."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._port)
        let_nobody_in(self._port)
        with suppress(BlockingIOError):
            while True:
                self._accept()
        self._port.close()
        await asyncio.gather(*self._tasks)

    def _ready(self) -> None:
        for _ in range(TAKEN_AT_ONCE):
            if self._has_more():
                self._stand_back(STAND_BACK_S)
                break
            if not self._take():
                break

    def _take(self) -> bool:
        """Take a connection; whether there was one."""
        try:
            self._accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            log.error("no connection can be taken for %g s: %s", PAUSE_S, error)
            self._stand_back(PAUSE_S)
            return False
        return True

    def _accept(self) -> None:
        connection, _ = self._port.accept()
        task = self._loop.create_task(self._make(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, connection: socket) -> None:
        with suppress(OSError):  # the caller has gone again
            await self._loop.connect_accepted_socket(self._protocol, connection)

    def _stand_back(self, seconds: float) -> None:
        self._loop.remove_reader(self._port)
        self._timer = self._loop.call_later(seconds, self._return)

    def _return(self) -> None:
        """Whatever nobody has taken meanwhile is taken now, however many this worker has."""
        self._timer = None
        self._loop.add_reader(self._port, self._ready)
        for _ in range(TAKEN_AT_ONCE):
            if not self._take():
                break
