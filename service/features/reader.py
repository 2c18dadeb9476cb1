"""Reads of Redis over one connection that all requests share.

A pool lends a connection to one command at a time, which costs redis-py 0.2 ms of CPU a read.
Here a command is written at once and its reply taken in turn. The server also tells, on the same
connection and in order with the replies, which keys that were read have changed since (RESP3 and
CLIENT TRACKING, Redis 6 or any Valkey). What is kept of them is right while the connection stands,
but for the moment that word of a change is on its way: a writer may be answered just before.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, cast

import hiredis
from redis.asyncio.connection import ConnectionPool, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from service.features.users import Values

log = logging.getLogger("mtgr")

Changed = Callable[[bytes | None], None]
"""Told a key whose value is another now; None: any may be."""

OPEN_S = 1.0
"""Longest wait for a new connection."""

SILENT_S = 1.0
"""A connection whose oldest command has waited so long is given up, and a new one opened."""

_INCOMPLETE = object()


class Reader:
    """MGET by the options of a pool of redis-py, without taking connections from it."""

    def __init__(self, pool: ConnectionPool, changed: Changed):
        self._pool, self._changed = pool, changed
        self._connection: _Connection | None = None
        self._opening: asyncio.Task[_Connection] | None = None

    async def mget(self, keys: Sequence[str], then: Callable[[Values], Any]) -> Any:
        """`then` of the values, called as they come, before any later change is told.

        Raises redis-py's exceptions, or OSError where the server cannot be reached. A connection
        that breaks meanwhile is replaced once.
        """

        def values(reply: Any) -> Any:
            if reply.__class__ is not list or len(reply) != len(keys):
                raise ResponseError("no answer to MGET")
            if not {value.__class__ for value in reply} <= {bytes, type(None)}:
                raise ResponseError("no answer to MGET")
            return then(reply)

        command = _packed("MGET", *keys)
        connection = self._connection
        if connection is not None and not connection.lost:
            try:
                return await connection.ask(command, values)
            except RedisConnectionError:
                pass
        return await (await self.connect()).ask(command, values)

    async def connect(self) -> "_Connection":
        """The connection, opened where there is none; many that wait share one attempt."""
        if self._connection is not None and not self._connection.lost:
            return self._connection
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(_seen)
        return await asyncio.shield(self._opening)

    async def _open(self) -> "_Connection":
        connection = _Connection(self._changed)
        try:
            async with asyncio.timeout(OPEN_S):
                await self._greet(connection)
        except BaseException:
            connection.abort()
            raise
        self._connection = connection
        return connection

    async def _greet(self, connection: "_Connection") -> None:
        loop, options = asyncio.get_running_loop(), self._pool.connection_kwargs
        if "path" in options:
            await loop.create_unix_connection(lambda: connection, options["path"])
        else:
            secure = issubclass(self._pool.connection_class, SSLConnection)
            tls = SSLConnection(**options).ssl_context.get() if secure else None
            host, port = options.get("host", "localhost"), options.get("port", 6379)
            await loop.create_connection(lambda: connection, host, port, ssl=tls)
        hello = ["HELLO", "3"]
        if options.get("password"):
            hello += ["AUTH", options.get("username") or "default", options["password"]]
        select, track = ["SELECT", str(options.get("db", 0))], ["CLIENT", "TRACKING", "ON"]
        for command in (hello, select, track):
            await connection.ask(_packed(*command))

    def close(self) -> None:
        """Close the connection; what waits for it fails."""
        if self._opening is not None:
            self._opening.cancel()
        if self._connection is not None:
            self._connection.abort()


class _Connection(asyncio.Protocol):
    """One connection; replies come in the order of the commands."""

    def __init__(self, changed: Changed):
        self.lost = False
        self._transport: asyncio.Transport | None = None
        self._changed = changed
        self._replies = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[tuple[asyncio.Future[Any], Callable[[Any], Any] | None, float]]
        self._waiting = deque()

    def ask(
        self, command: bytes, then: Callable[[Any], Any] | None = None
    ) -> "asyncio.Future[Any]":
        """The reply to a packed command, or `then` of it. Raises RedisConnectionError once the
        server has been silent for too long; a caller that gives up just cancels."""
        now = monotonic()
        if self._waiting and now - self._waiting[0][2] > SILENT_S:
            self.abort()
        if self.lost or self._transport is None:
            raise RedisConnectionError("the connection is lost")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((future, then, now))
        self._transport.write(command)
        return future

    def abort(self) -> None:
        """Close at once."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio's: replies to their askers, invalidations to whoever keeps values."""
        self._replies.feed(data)
        try:
            while (reply := self._replies.gets()) is not _INCOMPLETE:
                if isinstance(reply, hiredis.PushNotification):
                    self._pushed(reply)
                else:
                    self._answer(*self._waiting.popleft()[:2], reply)
        except hiredis.ProtocolError as error:
            log.error("Redis sent what is no reply: %s", error)
            self.abort()

    def _pushed(self, push: list[Any]) -> None:
        if push[0] == b"invalidate":
            for key in push[1] if push[1] is not None else [None]:
                self._changed(key)

    def _answer(
        self, future: "asyncio.Future[Any]", then: Callable[[Any], Any] | None, reply: Any
    ) -> None:
        if future.done():
            return  # its request gave up
        if isinstance(reply, hiredis.ReplyError):
            future.set_exception(ResponseError(str(reply)))
            return
        try:
            future.set_result(reply if then is None else then(reply))
        except Exception as bug:  # the asker's own; the connection serves others
            future.set_exception(bug)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: nobody tells what changes from now on."""
        self.lost = True
        self._changed(None)
        for future, _, _ in self._waiting:
            if not future.done():
                future.set_exception(RedisConnectionError("the connection was lost"))


def _packed(*words: str) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub allows one word
    return packed


def _seen(task: "asyncio.Task[Any]") -> None:
    """A failed attempt that nobody waited for is no unhandled exception."""
    if not task.cancelled():
        task.exception()
