"""Readiness: until the engine is warm the service says so, and ranks nothing."""

from threading import Event

import httpx

from engine_build.runtime.engine import Scores
from model_def.batch import PackedBatch
from tests.service.world import SCHEMA, Arithmetic, opener, request, running, settings


class Loading(Arithmetic):
    """An engine whose warm-up waits for leave."""

    def __init__(self, leave: Event) -> None:
        self._leave = leave

    def run(self, batch: PackedBatch) -> Scores:
        self._leave.wait()
        return super().run(batch)


def test_nothing_is_ranked_before_the_engine_is_warm(redis_url: str) -> None:
    """Live and not ready: 503 on both until the warm-up has run, and then 200."""
    leave = Event()
    seen: list[tuple[int, int, int]] = []

    def look(client: httpx.Client) -> None:
        seen.append(
            (
                client.get("/health/live").status_code,
                client.get("/health/ready").status_code,
                client.post("/v1/rank", json=request()).status_code,
            )
        )
        leave.set()

    with running(settings(redis_url), opener(SCHEMA, Loading(leave)), while_loading=look) as client:
        assert client.post("/v1/rank", json=request()).status_code == 200
    assert seen == [(200, 503, 503)]
