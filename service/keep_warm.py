"""While no request comes, the last one is ranked again now and then, so the next finds all warm.

A path that has lain still for ten milliseconds is slower, in every process on the way and in CPU
time too: at 20 requests a second a call of Triton takes more than twice what it takes in a row.
Nobody gets the answer of a warm-up and none is counted as a request; it costs what a request costs
from packing to ordering, which an otherwise idle machine has to spare.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from model_def.batch import Sample, pack
from service.deadline import Deadline
from service.errors import DependencyFailed
from service.rank import best
from service.ranking import RankRequest
from service.scenes import Scene

log = logging.getLogger("mtgr")

FOR_S = 60.0
"""Warm-ups end so long after the last request."""

Again = Callable[[], Awaitable[None]]
"""Ranks a request once more."""


async def rank_again(scene: Scene, sample: Sample, request: RankRequest, patience_s: float) -> None:
    """What `rank` does from packing to ordering, for nobody: not counted, not recorded, not
    compared with a shadow's, not held against a new engine. Raises DependencyFailed."""
    live = scene.served.live
    with live:
        model = scene.model
        batch = pack(model.schema, sample)
        deadline = Deadline.after(patience_s)
        tasks = await live.backend.score(batch, deadline, request.user_id)
        best(model.formula(tasks), request.top_k)


class KeepWarm:
    """A warm-up after each `idle_s` seconds without a request, one at a time and only while `free`;
    what has gone wrong once is not tried again."""

    def __init__(self, idle_s: float, free: Callable[[], bool], count: Callable[[str], None]):
        """`count` is told how each warm-up ended: done or failed."""
        self._idle_s, self._free, self._count = idle_s, free, count
        self._again: Again | None = None
        self._last = self._answered = monotonic()

    def came(self) -> None:
        """A request has arrived."""
        self._last = monotonic()

    def answered(self, again: Again | None) -> None:
        """A request has been answered; None: it is none to be ranked again."""
        self._again = again
        self._last = self._answered = monotonic()

    async def run(self) -> None:
        """For ever."""
        while True:
            rest_s = self._last + self._idle_s - monotonic()
            if rest_s > 0:
                await asyncio.sleep(rest_s)
                continue
            if monotonic() - self._answered > FOR_S:
                self._again = None
            if self._again is not None and self._free():
                await self._warm(self._again)
            self._last = monotonic()

    async def _warm(self, again: Again) -> None:
        try:
            await again()
        except Exception as error:  # whatever it is must not end the warm-ups of later requests
            if not isinstance(error, DependencyFailed):
                log.exception("a warm-up failed")
            if self._again is again:
                self._again = None
            self._count("failed")
        else:
            self._count("done")
