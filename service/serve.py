"""One gateway process: Redis, packages, uvicorn, and an honest exit."""

import gc
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack

from service.backends.opening import open_model
from service.backends.switching import OpenModel
from service.errors import BadSetting
from service.features.embedded import embedded_server
from service.features.store import connect
from service.http.gateway import Gateway
from service.http.server import GatewayServer
from service.scenes import build_scenes
from service.settings import Settings

GC_ALLOCATIONS = 50_000
"""Objects, made and not freed, between two collections of young garbage; Python's own 700 are made
by every request of 500 candidates."""


def leave_start_up_to_rest() -> None:
    """Nothing that lives as long as the process is looked at by the collector again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


def run(
    settings: Settings,
    reread: Callable[[], Settings] | None = None,
    open_model: OpenModel = open_model,
) -> None:
    """Serve until SIGTERM or SIGINT; raises BadSetting for a package that may not be served.

    SIGHUP takes over what `reread` gives, where that is safe.
    """
    failures: list[BaseException] = []
    # uvicorn drains on a signal and then raises it again: leave by unwinding, so Redis stops too.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        url = settings.redis_url or stack.enter_context(embedded_server(settings.redis_dir))
        redis = connect(url, settings.redis_connections)

        def fatal(error: BaseException) -> None:
            failures.append(error)
            server.should_exit = True

        gateway = Gateway(settings, build_scenes(settings, redis, open_model), redis, fatal)
        server = GatewayServer(gateway, reread)
        leave_start_up_to_rest()
        signal.signal(signal.SIGHUP, server.ask_reload)
        server.run()
    if failures:
        raise BadSetting(f"a model cannot be served: {failures[0]}") from failures[0]
