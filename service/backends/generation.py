"""One package's engine behind an alias: what is in flight, what failed lately, who shadows it."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.breaker import Watch
from service.deadline import Deadline
from service.errors import DependencyFailed
from service.ranking import Floats

WINDOW, BURST = 20, 5
"""An engine fails in a burst when so many of its last requests failed."""

SHADOW_S = 5.0
"""Longest wait for one shadow score: nobody waits for it."""


class LoadedBackend(Protocol):
    """A backend with its life; `service.ranking.Backend` is what ranking sees of it."""

    watch: Watch
    """Who counts its failures; set before it starts."""

    @property
    def ready(self) -> bool:
        """Whether it has started."""

    async def start(self, warm_up: tuple[PackedBatch, ...]) -> None:
        """Load, verify and warm the engine. Raises NotServing or EngineError, and then holds
        nothing."""

    async def score(
        self, batch: PackedBatch, deadline: Deadline, user_id: str
    ) -> Mapping[str, Floats]:
        """See `service.ranking.Backend`."""

    async def close(self) -> None:
        """Give back what it holds."""


class Shadow:
    """Another engine that scores some of the same requests, for comparison only.

    One request at a time: what it cannot keep up with is not compared, and never waits.
    """

    def __init__(self, backend: LoadedBackend, wanted: int, observe: Callable[[float], None]):
        self._backend, self._wanted, self._observe = backend, wanted, observe
        self._running: asyncio.Task[None] | None = None
        self.compared = self.failed = 0
        self.done = asyncio.Event()

    def offer(self, batch: PackedBatch, user_id: str, scores: Mapping[str, Floats]) -> None:
        """Compare this request too, unless one is being compared."""
        if self._running is None and not self.done.is_set():
            self._running = asyncio.create_task(self._compare(batch, user_id, scores))

    async def _compare(
        self, batch: PackedBatch, user_id: str, scores: Mapping[str, Floats]
    ) -> None:
        try:
            theirs = await self._backend.score(batch, Deadline.after(SHADOW_S), user_id)
        except DependencyFailed:
            self.failed += 1
        else:
            self.compared += 1
            self._observe(max(float(np.abs(theirs[t] - v).max()) for t, v in scores.items()))
        self._running = None
        if self.compared + self.failed >= self._wanted:
            self.done.set()


class Generation:
    """A `service.ranking.Backend` that is counted."""

    def __init__(self, config: PackageConfig, backend: LoadedBackend, watch: Watch):
        self.config, self.backend = config, backend
        backend.watch = watch
        self.shadow: Shadow | None = None
        self.failing = asyncio.Event()
        """Set once its requests have failed in a burst."""
        self._lately: deque[bool] = deque(maxlen=WINDOW)
        self._holders = 0
        self._idle = asyncio.Event()

    async def score(
        self, batch: PackedBatch, deadline: Deadline, user_id: str
    ) -> Mapping[str, Floats]:
        """As the backend does it."""
        try:
            scores = await self.backend.score(batch, deadline, user_id)
        except DependencyFailed:
            self._lately.append(True)
            if sum(self._lately) >= BURST:
                self.failing.set()
            raise
        self._lately.append(False)
        if self.shadow is not None:
            self.shadow.offer(batch, user_id, scores)
        return scores

    def __enter__(self) -> None:
        """Keep it from being closed while a request may still come to be scored."""
        self._holders += 1

    def __exit__(self, *_: object) -> None:
        self._holders -= 1
        if not self._holders:
            self._idle.set()

    async def retire(self) -> None:
        """Close once no request holds it; no new one may take it."""
        while self._holders:
            self._idle.clear()
            await self._idle.wait()
        await self.backend.close()
