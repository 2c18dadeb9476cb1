"""One gateway process: Redis, packages, uvicorn, and an honest exit."""

import signal
import sys
from contextlib import ExitStack

import uvicorn

from service.backends.opening import open_model
from service.backends.switching import OpenModel
from service.errors import BadSetting
from service.features.embedded import embedded_server
from service.features.store import connect
from service.http.app import create_app
from service.http.gateway import Gateway
from service.scenes import build_scenes
from service.settings import Settings


def run(settings: Settings, open_model: OpenModel = open_model) -> None:
    """Serve until SIGTERM or SIGINT; raises BadSetting for a package that may not be served."""
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
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(gateway),
                host=settings.host,
                port=settings.port,
                access_log=False,  # metrics count requests; a line for each would cost more
                log_config=None,
                server_header=False,
            )
        )
        server.run()
    if failures:
        raise BadSetting(f"a model cannot be served: {failures[0]}") from failures[0]
