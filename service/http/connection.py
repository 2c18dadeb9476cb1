"""One HTTP connection that no caller can hold open for ever, or fill memory through.

uvicorn's own reads whatever comes. Here a request has a time to arrive in and a size, heads and
pipelines are bounded, silent connections end, and what is no HTTP is refused in our words. One
sweep over all connections looks for what is overdue, so a request pays for two time stamps only.

A caller that closes its writing half is taken for gone, as proxies do it: TCP cannot tell a half
from a whole close, and the work of callers that are gone is dropped.
"""

from asyncio import BaseTransport
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, cast

from starlette.responses import Response
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.errors import (
    HeadTooLarge,
    InvalidRequest,
    MalformedHttp,
    Overloaded,
    ServiceError,
    TooLarge,
    TooSlow,
)
from service.http.arrival import Arrival
from service.http.gateway import Gateway
from service.http.hot_path import RANK, answer, arrive, finish, is_ranking
from service.http.replies import error_reply
from service.metrics import NO_SCENE

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers."""

MAX_PIPELINED = 32
"""Requests read ahead of their answers; the connection ends after them."""

READ_AHEAD_BYTES = 1 << 20
"""Of a body, before its endpoint asks for more: uvicorn's own 64 KiB would stop and start reading
for every request of 500 candidates in JSON, at two system calls each."""

RANK_URL = RANK.encode()
CLOSE = (b"connection", b"close")

FRAMING = 2
"""Bytes on the wire for each byte of a body at most: chunks of a byte each are not read."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds. `ended` is called when it is no more."""

    def __init__(self, *args: Any, gateway: Gateway, ended: Callable[[], object], **more: Any):
        super().__init__(*args, **more)
        self._gateway, self._tell_ended = gateway, ended
        self._begun: float | None = None
        """When the request that is being read began; None between requests."""
        self._idle_since = monotonic()
        self._wire_bytes = 0
        self._in_head = False
        self._ended = False
        """Whether nothing more is read."""
        self._unread_since: float | None = None
        """Since when the caller has left answers unread."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Any, transport))
        # uvloop would keep a refusal until all who are at work have had their turn.
        self.transport.set_write_buffer_limits(high=0)
        most = self._gateway.settings.max_connections
        if len(self.connections) > most:
            self._refuse(Overloaded(f"{most} connections, the most allowed", retry_after_s=1))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._tell_ended()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        before = self._begun
        super().data_received(data)
        if before is not None and before == self._begun:
            self._wire_bytes += len(data)
            self._check_size()
        if len(self.pipeline) > MAX_PIPELINED:
            self._end_after_answers()

    def _check_size(self) -> None:
        if self._in_head and self._wire_bytes > MAX_HEAD_BYTES:
            self._refuse(
                HeadTooLarge(
                    "too large", path="head", expected=f"at most {MAX_HEAD_BYTES} bytes of headers"
                )
            )
            return
        most = self._gateway.settings.max_body_bytes
        if self._wire_bytes > MAX_HEAD_BYTES + FRAMING * most:
            expected = f"a body of at most {most} bytes"
            self._refuse(TooLarge("too many bytes", path="$", expected=expected))

    def on_message_begin(self) -> None:
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._begun, self._wire_bytes, self._in_head = monotonic(), 0, True

    def on_headers_complete(self) -> None:
        """What is refused by its head is refused before uvicorn makes anything of it; its body is
        read past."""
        self._in_head = False
        arrival = None
        if self.url == RANK_URL and not self._busy and self.parser.get_method() == b"POST":
            arrival = arrive(self._gateway, self.headers, self.client)
            if isinstance(arrival, Response):
                once = self.parser.get_http_version() == "1.0"
                self._respond(arrival, not once and self.parser.should_keep_alive())
                return
        url, headers, expected = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope
        self.url, self.expect_100_continue = url, expected
        self.headers += headers
        self.scope["state"]["arrival"] = arrival
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """uvicorn's, but for how much of a body is read before it is asked for, and that a body
        which comes in one piece is not copied."""
        if not self._busy:
            return
        cycle: Any = self.cycle
        if not cycle.body:
            cycle.body = body
        else:
            if cycle.body.__class__ is bytes:
                cycle.body = bytearray(cycle.body)
            cycle.body += body
        if len(cycle.body) > READ_AHEAD_BYTES:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._begun = None
        if self._busy:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """uvicorn's, without its timer for silence: `sweep` looks for that."""
        self._idle_since = monotonic()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """As uvicorn does, but for ranking; what is refused needs no task."""
        scope: Any = cycle.scope
        if not is_ranking(scope):
            super()._start_asgi_task(cycle, app)
            return
        arrival = scope["state"]["arrival"] or arrive(self._gateway, scope["headers"], self.client)
        if isinstance(arrival, Response):
            self._end(cycle, arrival)
            return
        task = self.loop.create_task(self._rank(cycle, arrival))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    async def _rank(self, cycle: RequestResponseCycle, arrival: Arrival) -> None:
        """Answer a ranking request; head and body leave in one piece, before it is counted."""
        scope: Any = cycle.scope
        receive: Any = cycle.receive
        response = await answer(self._gateway, scope, receive, arrival)
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if not cycle.disconnected:
            self._end(cycle, response)
        await finish(self._gateway, scope, response)

    def _end(self, cycle: RequestResponseCycle, response: Response) -> None:
        cycle.response_started = cycle.response_complete = True
        self._respond(response, cycle.keep_alive)

    def _respond(self, response: Response, keep_alive: bool) -> None:
        """The answer in its turn, and what comes after it."""
        headers = [*self.server_state.default_headers, *response.raw_headers]
        if CLOSE in headers:  # the service is ending
            keep_alive = False
        elif not keep_alive:
            headers.append(CLOSE)
        self._write(response, headers)
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _write(self, response: Response, headers: Sequence[tuple[bytes, bytes]]) -> None:
        head = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(
            b"".join([STATUS_LINE[response.status_code], *head, b"\r\n", bytes(response.body)])
        )

    @property
    def _busy(self) -> bool:
        """Whether a request is let in that has no answer yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self._begun is None and not self._busy

    def sweep(self, now: float) -> None:
        """End what is overdue at `now`, of the monotonic clock."""
        settings = self._gateway.settings
        unread = self.transport.get_write_buffer_size()
        self._unread_since = (self._unread_since or now) if unread else None
        if now - (self._unread_since or now) > settings.read_timeout_ms / 1e3:
            self.transport.abort()
        elif self._begun is not None and now - self._begun > settings.read_timeout_ms / 1e3:
            most = f"a whole request within {settings.read_timeout_ms} ms"
            self._refuse(TooSlow("it came too slowly", path="$", expected=most))
        elif self.idle and now - self._idle_since > settings.keep_alive_s:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedHttp("not HTTP", path="head", expected="an HTTP/1.1 request"))

    def _end_after_answers(self) -> None:
        """Read nothing more; the connection ends with the answer to the newest request."""
        self._ended = True
        self.cycle.keep_alive = False
        self.transport.pause_reading()
        self.flow.read_paused = False  # for uvicorn not to resume

    def _refuse(self, error: ServiceError) -> None:
        """Answer and end the connection, in its turn: after the answers to earlier requests."""
        if (busy := self._busy) and (self._in_head or self.pipeline or self.cycle.response_started):
            self._end_after_answers()
            return
        self._ended = True
        invalid = isinstance(error, InvalidRequest)
        counter = self._gateway.metrics.invalid if invalid else self._gateway.metrics.refused
        counter.labels(NO_SCENE, error.type).inc()
        response = error_reply(error)
        self._write(response, [*response.raw_headers, CLOSE])
        if busy:  # whoever waits for the rest of its body learns that it will not come
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
