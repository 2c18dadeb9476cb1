"""An engine in this process, run by threads of its own so the event loop never waits for it."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import BoundedSemaphore

import numpy as np

from engine_build.runtime.engine import Engine
from engine_build.runtime.package import PackageError, open_package
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.breaker import Breaker, Unwatched, Watch
from service.deadline import Deadline
from service.errors import BadSetting, DependencyFailed
from service.ranking import Floats
from service.settings import ModelSettings

log = logging.getLogger("mtgr")


class InProcessBackend:
    """Runs one engine on `workers` threads; at most `queue` batches run or wait at a time."""

    watch: Watch = Unwatched()

    def __init__(self, load: Callable[[], Engine], *, workers: int, queue: int):
        self._load = load
        self._engine: Engine | None = None
        self._breaker = Breaker("backend")
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="engine")
        self._places = BoundedSemaphore(queue)

    @property
    def ready(self) -> bool:
        """Whether the engine is loaded, verified and warm."""
        return self._engine is not None

    async def start(self, warm_up: tuple[PackedBatch, ...]) -> None:
        """Load the engine and run each warm-up batch, off the event loop."""
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(self._threads, self._load)
        for batch in warm_up:
            await loop.run_in_executor(self._threads, engine.run, batch)
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
            future = self._threads.submit(_run, self._engine, batch, deadline)
            future.add_done_callback(self._release)
            with deadline.bound("backend"):
                return await asyncio.wrap_future(future)

    def _release(self, future: "Future[Mapping[str, Floats]]") -> None:
        self._places.release()

    async def close(self) -> None:
        """Drop what waits and let what runs finish."""
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)


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
