"""A thin HTTP/1.1 keep-alive client: callbacks instead of a task a request.

A generator that shares a machine with the server must cost little; `tests/bench/load_client.py`
compares it with httpx. It neither retries nor follows redirects: every answer is the server's.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httptools

from loadtest.outcome import Reply
from loadtest.request import Request

LARGEST_BODY = 16 << 20
"""Bytes of an answer that are read at most."""


class Exchange:
    """One request on its way; `done` is called once, with a Reply or with what went wrong."""

    __slots__ = ("connection", "done", "finished", "request", "timer")

    def __init__(self, request: Request, done: Callable[[Reply | str], None]):
        self.request, self.done = request, done
        self.finished = False
        self.connection: _Connection | None = None
        self.timer: asyncio.TimerHandle | None = None

    def finish(self, result: Reply | str) -> None:
        """Tell the caller, the first time."""
        if self.finished:
            return
        self.finished = True
        if self.timer is not None:
            self.timer.cancel()
        self.done(result)


class BadUrl(ValueError):
    """Not an http:// or https:// URL of a server."""


class Client:
    """At most `connections` to one server; what exceeds them waits its turn, oldest first."""

    def __init__(self, url: str, connections: int, headers: tuple[tuple[str, str], ...] = ()):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise BadUrl(f"{url!r}: expected http://HOST:PORT, or https://")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        common = (("host", parts.netloc), ("accept", "*/*"), *headers)
        self._common = "".join(f"{name}: {value}\r\n" for name, value in common)
        self._limit, self._open = connections, 0
        self._idle: list[_Connection] = []
        self._waiting: deque[Exchange] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.waited = 0
        """Requests that found every connection busy."""

    def send(self, exchange: Exchange, give_up_at: float) -> None:
        """Send now or as soon as a connection is free; give up at a time of the loop's clock."""
        loop = asyncio.get_running_loop()
        exchange.timer = loop.call_at(give_up_at, self._give_up, exchange)
        if self._idle:
            self._idle.pop().send(exchange)
            return
        self._waiting.append(exchange)
        if self._open < self._limit:
            self._connect()
        else:
            self.waited += 1

    def encode(self, request: Request) -> bytes:
        """The request's head; its body follows."""
        more = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
        return (
            f"POST {self._prefix}{request.path} HTTP/1.1\r\n{self._common}"
            f"content-type: {request.content_type}\r\n"
            f"content-length: {len(request.body)}\r\n{more}\r\n"
        ).encode()

    async def close(self) -> None:
        """Close what is idle; nothing may be under way."""
        await asyncio.gather(*self._tasks)
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)  # the loop tells transports of their end in its next round

    def free(self, connection: "_Connection") -> None:
        """A connection has its whole answer: the next request that waits takes it."""
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.finished:
                connection.send(exchange)
                return
        self._idle.append(connection)

    def lost(self, connection: "_Connection") -> None:
        """A connection is gone: those who wait get another."""
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if self._waiting:
            self._connect()

    def _connect(self) -> None:
        self._open += 1
        task = asyncio.get_running_loop().create_task(self._open_connection())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_connection(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self), self._host, self._port, ssl=self._tls or None
            )
        except OSError as error:
            self._open -= 1
            while self._waiting:
                exchange = self._waiting.popleft()
                if not exchange.finished:
                    exchange.finish(f"no connection: {type(error).__name__}")
                    break
            if self._waiting:
                self._connect()
        else:
            self.free(connection)

    @staticmethod
    def _give_up(exchange: Exchange) -> None:
        connection = exchange.connection
        exchange.finish("no answer")
        if connection is not None:
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection and the exchange that it carries, if any. Parser callbacks are `on_*`."""

    def __init__(self, client: Client):
        self._client = client
        self._exchange: Exchange | None = None
        self._transport: Any = None
        self._parser: Any = None

    def send(self, exchange: Exchange) -> None:
        """Write the request in one go."""
        self._exchange, exchange.connection = exchange, self
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._length = 0
        self._transport.writelines([self._client.encode(exchange.request), exchange.request.body])

    def close(self) -> None:
        """Drop the connection with whatever is under way on it."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.close()  # bytes that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {type(error).__name__}")
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._length += len(body)
        if self._length > LARGEST_BODY:
            self._end("a body without end")
            self.close()
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        status, again = self._parser.get_status_code(), self._parser.should_keep_alive()
        if 100 <= status < 200:
            return
        reply = Reply(status, self._headers, b"".join(self._chunks))
        self._parser = None
        self._end(reply)
        if again:
            self._client.free(self)
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._end("connection closed before an answer")
        self._client.lost(self)

    def _end(self, result: Reply | str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.connection = None
            exchange.finish(result)
