"""An engine in this process, run by threads of its own so the event loop never waits for it."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from threading import BoundedSemaphore

import numpy as np

from engine_build.runtime.engine import Engine
from engine_build.runtime.package import PackageError, open_package
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.threads import Threads
from service.breaker import Breaker, Unwatched, Watch
from service.deadline import Deadline
from service.errors import BadSetting, DependencyFailed
from service.ranking import Floats
from service.settings import ModelSettings

log = logging.getLogger("mtgr")

CLOSE_S = 5.0
"""Longest wait for a run to finish once the backend is closed: it may be frozen."""


class InProcessBackend:
    """Runs one engine on `workers` threads; at most `queue` batches run or wait at a time."""

    watch: Watch = Unwatched()

    def __init__(self, load: Callable[[], Engine], *, workers: int, queue: int):
        self._load = load
        self._engine: Engine | None = None
        self._breaker = Breaker("backend")
        self._threads = Threads(workers, "engine")
        self._places = BoundedSemaphore(queue)

    @property
    def ready(self) -> bool:
        """Whether the engine is loaded, verified and warm."""
        return self._engine is not None

    async def start(self, warm_up: tuple[PackedBatch, ...]) -> None:
        """Load the engine and run each warm-up batch, off the event loop; once."""
        self._threads.start()
        try:
            engine = await asyncio.wrap_future(self._threads.submit(self._load))
            for batch in warm_up:
                await asyncio.wrap_future(self._threads.submit(partial(engine.run, batch)))
        except Exception:
            await self.close()
            raise
        self._breaker = Breaker("backend", watch=self.watch)
        self._engine = engine

    async def score(
        self, batch: PackedBatch, deadline: Deadline, user_id: str
    ) -> Mapping[str, Floats]:
        """Probability [T_c] by task. Raises DependencyFailed("backend", reason) with reason
        timeout, queue_full, error, invalid_scores or circuit_open; work that is late before it
        starts is dropped."""
        if self._engine is None:
            raise DependencyFailed("backend", "not_loaded")
        with self._breaker.call(deadline):
            if not self._places.acquire(blocking=False):
                raise DependencyFailed("backend", "queue_full")
            future = self._threads.submit(partial(_run, self._engine, batch, deadline))
            future.add_done_callback(self._release)
            with deadline.bound("backend"):
                return await asyncio.wrap_future(future)

    def _release(self, future: "Future[Mapping[str, Floats]]") -> None:
        self._places.release()

    async def close(self) -> None:
        """Drop what waits and let what runs finish; what does not in CLOSE_S is left to itself."""
        if not await asyncio.to_thread(self._threads.close, CLOSE_S):
            log.error("an engine has not returned in %g s: left to itself", CLOSE_S)


def _run(engine: Engine, batch: PackedBatch, deadline: Deadline) -> Mapping[str, Floats]:
    if not deadline.left():
        raise DependencyFailed("backend", "timeout")
    try:
        tasks: Mapping[str, Floats] = engine.run(batch).tasks
    except Exception as error:
        log.exception("an engine failed")
        raise DependencyFailed("backend", "error") from error
    for scores in tasks.values():
        if scores.shape != (batch.candidates,) or not np.isfinite(scores).all():
            raise DependencyFailed("backend", "invalid_scores")
    return tasks


def open_model(settings: ModelSettings) -> tuple[PackageConfig, InProcessBackend]:
    """Open a package, its hashes verified, and the backend that will load its engine; raises
    BadSetting naming the file that cannot be used."""
    try:
        package = open_package(settings.package)
    except PackageError as error:
        raise BadSetting(str(error)) from None
    load = partial(package.load_engine, settings.engine, threads=settings.threads)
    backend = InProcessBackend(load, workers=settings.workers, queue=settings.queue)
    return package.config, backend
