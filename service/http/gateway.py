"""What the endpoints share, and the life of it: start, ready, stop."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import time

from redis.asyncio import Redis

from service.admission import Admission
from service.deadline import Stages
from service.errors import NotReady
from service.http.validate import Limits
from service.metrics import Metrics
from service.rank import RankedItems
from service.scenes import Scene, Scenes, warm_up
from service.settings import Settings

log = logging.getLogger("mtgr")


class Gateway:
    """Settings, scenes, metrics and admission of one running service."""

    def __init__(
        self,
        settings: Settings,
        scenes: Scenes,
        redis: "Redis",
        fatal: Callable[[BaseException], None],
    ):
        """`fatal` is told of an engine that cannot be loaded: nothing can be served then."""
        self.settings, self.scenes = settings, scenes
        self.metrics = Metrics()
        self.admission = Admission(settings.max_in_flight)
        self.limits = Limits(
            max_candidates=settings.max_candidates,
            max_events=settings.max_events,
            clock_skew_ms=settings.clock_skew_ms,
            default_deadline_ms=settings.default_deadline_ms,
            max_deadline_ms=settings.max_deadline_ms,
        )
        self._redis, self._fatal = redis, fatal
        self.metrics.in_flight.set_function(lambda: self.admission.in_flight)
        self.metrics.ready.set_function(lambda: self.ready)
        for scene in scenes.by_name.values():
            served = scene.served
            self.metrics.model.labels(scene.name, served.alias, served.config.version).set(1)

    @property
    def ready(self) -> bool:
        """Whether every engine is loaded, verified and warm."""
        return all(served.backend.ready for served in self.scenes.served.values())

    def require_ready(self) -> None:
        """Raises NotReady while engines are loading."""
        if not self.ready:
            raise NotReady("engines are loading", retry_after_s=1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the engines in the background while the block serves; close everything after."""
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            for served in self.scenes.served.values():
                await asyncio.to_thread(served.backend.close)
            await self._redis.aclose()

    async def _load(self) -> None:
        try:
            for served in self.scenes.served.values():
                batches = warm_up(served.config.features, self.settings.max_candidates)
                await served.backend.start(batches)
                log.info("%s: %s is ready", served.alias, served.config.version)
        except Exception as error:
            self._fatal(error)

    def observe(self, scene: Scene, ranked: RankedItems, candidates: int, stages: Stages) -> None:
        """Count one answer."""
        metrics, name = self.metrics, scene.name
        outcome = "answered" if ranked.reason is None else "degraded"
        metrics.requests.labels(name, outcome).inc()
        if ranked.reason is not None:
            metrics.degraded.labels(name, ranked.reason, ranked.ranked_by).inc()
        for part, reason in ranked.missing.items():
            metrics.features_absent.labels(name, part, reason).inc()
        if ranked.payload_bytes:
            metrics.payload_bytes.labels(name).observe(ranked.payload_bytes)
        metrics.candidates.labels(name).observe(candidates)
        for stage, seconds in stages.seconds.items():
            metrics.stage_seconds.labels(name, stage).observe(seconds)
        metrics.request_seconds.labels(name).observe(sum(stages.seconds.values()))


def now_ms() -> int:
    """The wall clock, in milliseconds since 1970."""
    return int(time() * 1000)
