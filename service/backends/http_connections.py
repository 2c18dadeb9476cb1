"""HTTP/1.1 connections of this event loop's own to one server, one request at a time on each.

TCP tells nobody for a quarter of an hour that the other end has gone without a word. So the kernel
is told to ask sooner: a host that has gone acknowledges nothing, one whose server is busy or hangs
does. And where something between acknowledges in its place, a connection that has shown no life for
long while a request waits for its answer takes those that were not used since out of use.
"""

import asyncio
import socket
from typing import Any, NamedTuple

import httptools

from service.backends.triton_calls import GIVEN_UP_S

SILENT_S = 1.0
"""How long after its caller gave up a request may be unanswered before its connection is taken for
one that hangs."""

GONE_S = 3
"""How long what is sent may be unacknowledged before its connection is closed."""

PROBES = {socket.TCP_KEEPIDLE: 2, socket.TCP_KEEPINTVL: 1}
"""When the kernel asks on a connection on which nothing comes, and how soon again; seconds."""


class Reply(NamedTuple):
    """What a server answered; headers by name in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Connections:
    """To `host:port`, as many as needed."""

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self.idle: list[_Connection] = []
        """Those that wait for nothing, in the order of `idle_since`: the last is warm."""
        self.open: set[_Connection] = set()
        self.given_up: dict[_Connection, asyncio.TimerHandle] = {}
        """Those whose answer nobody waits for, and what happens next if none comes."""
        self._closed = False

    async def ask(self, message: bytes) -> Reply:
        """The answer to a whole request, which is sent again where an idle connection had ended.

        Who gives up cancels the wait, and the server has the request still. Raises OSError.
        """
        while self.idle:
            try:
                return await self.idle.pop().ask(message)
            except ConnectionError:
                continue  # the server ended it while it was idle, or has gone: a new one will tell
        if self._closed:
            raise ConnectionError("closed")
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self), self._host, self._port
        )
        return await connection.ask(message)

    def close(self) -> None:
        """End them, with what is under way on them, and begin no more."""
        self._closed = True
        for connection in [*self.open]:
            connection.close()

    def hangs(self, connection: "_Connection") -> None:
        """Nothing has come on it since it was asked, nor is it known of those idle since before
        that anything would: they are not asked."""
        loop = asyncio.get_running_loop()
        self.given_up[connection] = loop.call_later(GIVEN_UP_S, connection.close)
        while self.idle and self.idle[0].idle_since < connection.asked:
            self.idle.pop(0).close()


class _Connection(asyncio.Protocol):
    """One of `owner`. Parser callbacks are `on_*`."""

    def __init__(self, owner: Connections):
        self._owner = owner
        self._transport: Any = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Reply] | None = None
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self.asked = self.idle_since = 0.0
        """Times of the event loop."""

    async def ask(self, message: bytes) -> Reply:
        """The answer to a whole request. Raises ConnectionError where the connection ends first."""
        loop = asyncio.get_running_loop()
        self._answer, self.asked = loop.create_future(), loop.time()
        self._headers, self._chunks = {}, []
        self._transport.write(message)
        try:
            return await self._answer
        except asyncio.CancelledError:
            if self._answer is not None:
                hangs = loop.call_later(SILENT_S, self._owner.hangs, self)
                self._owner.given_up[self] = hangs
            raise

    def close(self) -> None:
        """End it with whatever is under way on it."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = transport
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in PROBES.items():
            own.setsockopt(socket.IPPROTO_TCP, option, seconds)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE_S)
        self._owner.open.add(self)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ConnectionError(f"not HTTP: {error}"))
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        status, again = self._parser.get_status_code(), self._parser.should_keep_alive()
        if again and self._answer is not None:  # not what nobody asked for
            self.idle_since = asyncio.get_running_loop().time()
            self._owner.idle.append(self)
        else:
            self.close()
        self._end(Reply(status, self._headers, b"".join(self._chunks)))

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's."""
        self._owner.open.discard(self)
        if self in self._owner.idle:
            self._owner.idle.remove(self)
        self._end(ConnectionError("the connection ended before an answer"))

    def _end(self, result: Reply | ConnectionError) -> None:
        """Of the request that is under way, if one is: tell whoever still waits."""
        answer, self._answer = self._answer, None
        if timer := self._owner.given_up.pop(self, None):
            timer.cancel()
        if answer is None or answer.done():
            return
        if isinstance(result, Reply):
            answer.set_result(result)
        else:
            answer.set_exception(result)
