"""The gateway's process, or several: Redis, packages, uvicorn, and an honest exit."""

import gc
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from socket import socket

from service.accepting import Part
from service.backends.opening import open_model
from service.backends.switching import OpenModel
from service.errors import BadSetting
from service.features.embedded import embedded_server
from service.features.store import connect
from service.http.gateway import Gateway
from service.http.server import GatewayServer
from service.open_files import make_room
from service.scenes import build_scenes
from service.settings import Settings
from service.workers import move_link, supervise

GC_ALLOCATIONS = 50_000
"""Objects, made and not freed, between two collections of young garbage; Python's own 700 are made
by every request of 500 candidates."""

SWITCH_S = 0.0005
"""After so long a thread gives the interpreter to one that waits. Python's own 5 ms are what the
event loop then waits for a thread that writes a log or a capture, with an answer due."""


def leave_start_up_to_rest() -> None:
    """Nothing that lives as long as the process is looked at by the collector again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


def leave_on_signals() -> None:
    """uvicorn drains on a signal and then raises it again: leave by unwinding, so Redis stops."""
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit(0))


def run(
    settings: Settings,
    reread: Callable[[], Settings] | None = None,
    open_model: OpenModel = open_model,
) -> None:
    """Serve until SIGTERM or SIGINT; raises BadSetting for a package that may not be served.

    SIGHUP takes over what `reread` gives, where that is safe.
    """
    leave_on_signals()
    with ExitStack() as stack:
        url = settings.redis_url or stack.enter_context(embedded_server(settings.redis_dir))
        if settings.workers > 1:
            supervise(settings, reread, partial(_serve, url, open_model))
        else:
            _serve(url, open_model, settings, reread)


def _serve(
    url: str,
    open_model: OpenModel,
    settings: Settings,
    reread: Callable[[], Settings] | None,
    port: socket | None = None,
    part: Part | None = None,
) -> None:
    """One gateway over the Redis at `url`; one of several where it is given the `port`, and its
    part in taking connections of it."""
    leave_on_signals()
    make_room(settings.max_connections)
    failures: list[BaseException] = []
    redis = connect(url, settings.redis_connections)

    def fatal(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    publish = None if port is None else move_link
    gateway = Gateway(settings, build_scenes(settings, redis, open_model), redis, fatal, publish)
    server = GatewayServer(gateway, reread, part)
    leave_start_up_to_rest()
    sys.setswitchinterval(SWITCH_S)
    signal.signal(signal.SIGHUP, server.ask_reload)
    server.run(None if port is None else [port])
    if failures:
        raise BadSetting(f"a model cannot be served: {failures[0]}") from failures[0]
