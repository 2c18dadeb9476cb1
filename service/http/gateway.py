"""What the endpoints share, and the life of it: start, ready, stop."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic, time
from typing import Any

from redis.asyncio import Redis

from model_def.batch import PackedBatch
from model_def.schema import FeatureSchema
from model_def.served import ServedRequest
from service.admission import Admission
from service.backends.captures import open_captures
from service.backends.switching import Switcher
from service.callers import open_callers
from service.deadline import Deadline, Stages
from service.errors import NotReady, NotServing
from service.features.store import connect_ahead
from service.feedback import Feedback
from service.http.arrival import Arrival, told_patience_ms
from service.http.validate import Limits
from service.loop_lag import LoopLag
from service.ranking import Model, RankedItems, RankRequest
from service.request_log import open_request_log
from service.scenes import Scene, Scenes, Served, warm_up
from service.setting_sources import reloaded
from service.settings import Settings
from service.tally import Tally
from service.tracing import open_tracing

log = logging.getLogger("mtgr")

RawHeaders = Iterable[tuple[bytes, bytes]]
"""Names in lower case."""

Client = tuple[str, int] | None
"""Address and port, where a connection has them."""

FIRST_RETRY_S, LAST_RETRY_S = 0.25, 8.0
"""Between two attempts to start an engine that lies beyond this process, doubling."""


class Gateway:
    """Settings, scenes, metrics and admission of one running service."""

    def __init__(
        self,
        settings: Settings,
        scenes: Scenes,
        redis: "Redis",
        fatal: Callable[[BaseException], None],
        publish: Callable[[Path, Path], None] | None = None,
    ):
        """`fatal` is told of an engine that cannot be loaded: nothing can be served then.
        `publish` tells other workers of a switch (see `Switcher`)."""
        self.settings, self.scenes = settings, scenes
        self.metrics = scenes.metrics
        self.lag = LoopLag()
        self.admission = Admission(settings.max_in_flight, settings.max_waiting, self.lag)
        self._callers = open_callers(settings)
        self.request_log = open_request_log(settings, self.metrics)
        self.captures = open_captures(settings, self.metrics)
        self.tracing = open_tracing(settings)
        self.limits = Limits.of(settings)
        self.draining = False
        self._redis, self._fatal = redis, fatal
        self.metrics.sampled(self.metrics.in_flight, lambda: self.admission.in_flight)
        self.metrics.sampled(self.metrics.waiting, lambda: self.admission.waiting)
        self.metrics.sampled(self.metrics.limit, lambda: self.admission.limit())
        self.metrics.sampled(self.metrics.loop_lag_seconds, lambda: self.lag())
        self.metrics.sampled(self.metrics.ready, lambda: self.ready)
        self.metrics.sampled(self.metrics.wait, self.admission.wait_s)
        self.tally = Tally(scenes, settings)
        self.feedback = Feedback(self.tally)
        self._problems: dict[str, str] = {}
        self.switchers = {
            alias: Switcher(
                served,
                settings.models[alias],
                scenes.open_model,
                self._warm_up,
                observer=self.tally,
                publish=publish,
            )
            for alias, served in scenes.served.items()
        }

    @property
    def ready(self) -> bool:
        """Whether more requests may be sent: every engine is loaded, verified and warm, and no
        signal has ended the service."""
        return self.loaded and not self.draining

    @property
    def loaded(self) -> bool:
        """Whether every engine is loaded, verified and warm."""
        return all(served.live.backend.ready for served in self.scenes.served.values())

    def require_loaded(self) -> None:
        """Raises NotReady while engines are loading."""
        if not self.loaded:
            problems = "; ".join(self._problems.values())
            raise NotReady(problems or "engines are loading", retry_after_s=1)

    def caller(self, scope: Mapping[str, Any]) -> str:
        """Who sent a request; raises Unauthorized or RateLimited."""
        return self._identify(dict(scope["headers"]), scope["client"])

    def admit(self, raw_headers: RawHeaders, client: Client) -> Arrival:
        """Refuse a ranking request by its head, before anything is spent on it. Raises
        Unauthorized, NotReady or Overloaded."""
        start = monotonic() - self.lag()  # for so long it may have lain in its socket
        headers = dict(raw_headers)
        caller = self._identify(headers, client)
        self.require_loaded()
        deadline = self.deadline(start, told_patience_ms(headers))
        self.admission.check(caller, deadline)
        return Arrival(headers, caller, start, deadline)

    def _identify(self, headers: Mapping[bytes, bytes], client: Client) -> str:
        return self._callers.identify(headers, client[0] if client else "")

    def deadline(self, start: float, patience_ms: int | None) -> Deadline:
        """When the work on a request that came at `start` must be done, so that its answer can
        leave in time; None is the default patience."""
        settings = self.settings
        patience_ms = min(patience_ms or settings.default_deadline_ms, settings.max_deadline_ms)
        # Late as the loop is now, it will be late again when it is time to answer.
        reserve_ms = min(settings.answer_reserve_ms + 1e3 * self.lag(), patience_ms / 2)
        return Deadline.after((patience_ms - reserve_ms) / 1e3, start)

    def require_ready(self) -> None:
        """Raises NotReady while engines are loading, and from the signal that ends the service."""
        self.require_loaded()
        if self.draining:
            raise NotReady("the service is ending", retry_after_s=1)

    def reload(self, settings: Settings) -> list[str]:
        """Take other settings over, and the API keys anew; the names of those that changed. Raises
        BadSetting where one may not change, and then nothing does."""
        changed = reloaded(self.settings, settings)
        self._callers = open_callers(settings)
        self.settings, self.limits = settings, Limits.of(settings)
        self.admission.limit.most = settings.max_in_flight
        if self.captures is not None:
            self.captures.settings = settings
        self.scenes.reload(settings)
        self.tally.reload(settings)
        return changed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the engines in the background while the block serves; close everything after."""
        self.lag.start()
        patience = Deadline.after(self.settings.redis_write_timeout_ms / 1e3)
        if not await connect_ahead(self._redis, self.settings.redis_connections, patience):
            log.warning("Redis does not answer; users are ranked as strangers until it does")
        tasks = [asyncio.create_task(self._keep(s)) for s in self.scenes.served.values()]
        if self.request_log is not None:
            self.request_log.start()
        if self.captures is not None:
            self.captures.start()
        try:
            yield
        finally:
            self.lag.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for switcher in self.switchers.values():
                await switcher.close()
            for served in self.scenes.served.values():
                served.features.reader.close()
            await self._redis.aclose()
            if self.request_log is not None:
                await asyncio.to_thread(self.request_log.close)
            if self.captures is not None:
                await asyncio.to_thread(self.captures.close)
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)

    async def _keep(self, served: Served) -> None:
        """Start an alias's engine, then follow its link."""
        try:
            pause_s = FIRST_RETRY_S
            while not await self._start(served):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_RETRY_S)
            await self.switchers[served.alias].watch()
        except Exception as error:
            self.draining = True
            self._fatal(error)

    async def _start(self, served: Served) -> bool:
        """Whether it has started; the reason why not is what readiness answers."""
        try:
            await served.live.backend.start(self._warm_up(served.config.features))
        except NotServing as problem:
            if self._problems.get(served.alias) != str(problem):
                self._problems[served.alias] = str(problem)
                log.error("%s is not ready: %s", served.alias, problem)
            return False
        self._problems.pop(served.alias, None)
        log.info("%s: %s is ready", served.alias, served.config.version)
        return True

    def _warm_up(self, schema: FeatureSchema) -> tuple[PackedBatch, ...]:
        return warm_up(schema, self.settings.max_candidates)

    def record(
        self, scene: Scene, model: Model, request: RankRequest, ranked: RankedItems, stages: Stages
    ) -> None:
        """Remember what was predicted, and offer it to the captures and the request log, if there
        are any; never waits."""
        self.feedback.answered(request.request_id, ranked.item_ids, ranked.tasks)
        for task, probabilities in ranked.tasks.items():
            score = self.metrics.score.labels(scene.name, model.version, task)
            score.observe(probabilities[0])
        served = scene.served
        if self.captures is not None and model.backend is served.live:  # not switched meanwhile
            package = self.switchers[served.alias].package
            how = self.settings.models[served.alias]
            self.captures.offer(scene.name, model, package, how, request, ranked, stages)
        if self.request_log is None:
            return
        self.request_log.offer(
            model.schema,
            ServedRequest(
                request_id=request.request_id,
                user_id=request.user_id,
                scene=scene.name,
                model_version=model.version,
                sample=ranked.whole.sample,
                ranked_by=ranked.ranked_by,
                reason=ranked.reason,
                answered=ranked.whole.order,
                scores=ranked.whole.scores,
                tasks=ranked.whole.tasks,
            ),
        )


def now_ms() -> int:
    """The wall clock, in milliseconds since 1970."""
    return int(time() * 1000)
