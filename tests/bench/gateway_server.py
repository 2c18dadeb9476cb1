"""One server of `tests.bench.gateway` in a process of its own: `KIND PORT REDIS_URL`."""

import gc
import sys
import time

from service import deadline, serve
from service.settings import ModelSettings, Settings
from tests.bench import gateway_job as job
from tests.bench.gateway_rivals import echo, plain


def ours(port: int, redis_url: str, **more: int) -> None:
    """The gateway as `mtgr serve` runs it, over the engine stub; Redis is asked for each user."""
    settings = Settings(
        models={"home": ModelSettings(package=job.STORE)},
        port=port,
        redis_url=redis_url,
        redis_timeout_ms=2000,
        default_deadline_ms=10_000,
        **more,
    )
    serve.run(settings, open_model=job.open_model)


def staged(port: int, redis_url: str) -> None:
    """Its stages in CPU time of the event loop's thread, not in time passed."""
    deadline.perf_counter = time.thread_time
    ours(port, redis_url)


def unknown(port: int, redis_url: str) -> None:
    """With every user's values checked each time, as if they had never been read before."""
    ours(port, redis_url, remembered_users_bytes=0)


def cached(port: int, redis_url: str) -> None:
    """With users kept in memory until they change."""
    ours(port, redis_url, user_cache_ttl_s=3600)


def collected(port: int, redis_url: str) -> None:
    """With the garbage collector as Python sets it."""
    serve.leave_start_up_to_rest = lambda: gc.set_threshold(700, 10, 10)
    ours(port, redis_url)


def litserve(port: int, redis_url: str) -> None:
    """Imported where it is asked for: it takes a second, and the others would carry it."""
    from tests.bench.gateway_litserve import litserve

    litserve(port, redis_url)


SERVERS = {f.__name__: f for f in (ours, staged, unknown, cached, collected, plain, litserve, echo)}

if __name__ == "__main__":
    kind, port, redis_url = sys.argv[1:]
    SERVERS[kind](int(port), redis_url)
