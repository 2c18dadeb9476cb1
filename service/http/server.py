"""uvicorn, with connections that are bounded and an end that loses nothing.

On SIGTERM readiness is false at once; nobody else is let in, connections that the kernel has
completed are still taken, then the listeners close; whatever request arrives on an open connection
is answered with `Connection: close`; connections that stay silent are closed after LINGER_S, and
what is not done within `drain_s` is cut off. The exit status is 0. A worker that is told to end
before it takes connections leaves them to those that do.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from socket import socket
from time import monotonic
from types import FrameType
from typing import Any, cast

import uvicorn

from service.accepting import Part
from service.errors import BadSetting
from service.http.app import create_app
from service.http.connection import Connection
from service.http.gateway import Gateway
from service.http.listener import Listener
from service.settings import Settings

log = logging.getLogger("mtgr")

LINGER_S = 1.0
"""Silence on an open connection after which nobody is about to use it."""

SWEEP_TICKS = 5
"""Of 0.1 seconds, between two looks for overdue connections."""

SAMPLE_TICKS = 10
"""Between two looks at the gauges that other workers tell of, and at what was observed."""

POLL_S = 0.02


class GatewayServer(uvicorn.Server):
    """Serves one gateway until a signal. `reread`, if given, is what SIGHUP loads settings by;
    `part` is that of one of several workers in taking connections."""

    def __init__(
        self,
        gateway: Gateway,
        reread: Callable[[], Settings] | None = None,
        part: Part | None = None,
    ):
        self._gateway, self._reread, self._part = gateway, reread, part
        self._reload_asked = False
        self._listeners: list[Listener] = []
        settings = gateway.settings
        super().__init__(
            uvicorn.Config(
                create_app(gateway),
                host=settings.host,
                port=settings.port,
                http=cast(Any, partial(Connection, gateway=gateway, ended=self._tell)),
                ws="none",
                access_log=False,  # metrics count requests; a line for each would cost more
                log_config=None,
                server_header=False,
                timeout_keep_alive=settings.keep_alive_s,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._gateway.draining = True
        super().handle_exit(sig, frame)

    def ask_reload(self, *_: object) -> None:
        """Handler of SIGHUP: settings are read again at the next tick."""
        self._reload_asked = True

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            now = monotonic()
            for connection in self._connections():
                connection.sweep(now)
        if counter % SAMPLE_TICKS == 0:
            self._gateway.metrics.sample()
        if self._part is not None and self._gateway.loaded:
            self._part.loaded()
        if self._reload_asked and self._reread is not None:
            self._reload_asked = False
            self._reload(self._reread)
        return await super().on_tick(counter)

    def _reload(self, reread: Callable[[], Settings]) -> None:
        try:
            changed = self._gateway.reload(reread())
        except BadSetting as problem:
            self._gateway.metrics.reloads.labels("refused").inc()
            log.error("settings stay as they were: %s", problem)
            return
        self._gateway.metrics.reloads.labels("taken").inc()
        log.info("settings read again: %s", ", ".join(changed) or "nothing has changed")

    async def startup(self, sockets: list[socket] | None = None) -> None:
        if sockets is not None:
            await self._start_on(sockets)
            return
        await super().startup()
        for server in self.servers:
            self._listen([socket(fileno=os.dup(bound.fileno())) for bound in server.sockets])
            server.close()

    async def _start_on(self, sockets: list[socket]) -> None:
        """Load the engines, and take connections of these sockets when it is time."""
        self.config.port = sockets[0].getsockname()[1]  # what the log tells
        await super().startup([])
        while not (self._may_open() or self.should_exit):
            await asyncio.sleep(POLL_S)
        if not self.should_exit:
            self._listen(sockets)

    def _listen(self, sockets: list[socket]) -> None:
        self._listeners += [Listener(port, self._protocol, self._has_more) for port in sockets]
        self._tell()

    def _tell(self) -> None:
        """Tell the other workers how many connections this one has."""
        if self._part is not None and not self._gateway.draining:
            on_the_way = sum(listener.on_the_way for listener in self._listeners)
            self._part.tell(len(self.server_state.connections) + on_the_way)

    def _has_more(self) -> bool:
        """Whether another worker has fewer connections."""
        self._tell()
        return self._part is not None and self._part.has_more

    def _may_open(self) -> bool:
        part = self._part
        return part is None or part.early or (part.allowed and self._gateway.loaded)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._gateway.draining = True
        grace_s = self._gateway.settings.drain_s
        end = monotonic() + grace_s
        log.info("draining for at most %d s", grace_s)
        if self._part is not None:
            self._part.closes()
        for listener in self._listeners:
            await listener.close()
        for port in sockets or []:
            port.close()
        state = self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        for connection in self._connections():
            if not connection.idle:
                connection.shutdown()
        await self._until_gone(min(end, monotonic() + LINGER_S))
        for connection in self._connections():
            connection.shutdown()
        if not await self._until_gone(end):
            log.error("%d requests were not done in %d s: cut off", len(state.tasks), grace_s)
            for task in state.tasks:
                task.cancel()
            for connection in self._connections():
                connection.transport.abort()
        await self.lifespan.shutdown()

    def _protocol(self) -> asyncio.Protocol:
        connection: Any = self.config.http_protocol_class
        state = self.server_state
        protocol: asyncio.Protocol = connection(
            config=self.config, server_state=state, app_state=self.lifespan.state
        )
        return protocol

    async def _until_gone(self, until: float) -> bool:
        """Whether every connection and task has ended by `until`."""
        state = self.server_state
        while state.connections or state.tasks:
            if monotonic() >= until or self.force_exit:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _connections(self) -> list[Connection]:
        return cast(list[Connection], list(self.server_state.connections))
