"""Warm-ups keep the path warm, and nobody who looks at requests can tell."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from engine_build.runtime.engine import Scores
from model_def.batch import PackedBatch
from service import keep_warm
from service.errors import DependencyFailed
from service.keep_warm import KeepWarm
from tests.service.world import SCHEMA, Arithmetic, opener, request, running, settings

PATIENCE_S = 20.0


class Counting(Arithmetic):
    """Counts its runs, of `takes_s` each, and tells the candidates of those under way."""

    def __init__(self) -> None:
        self.takes_s, self.runs = 0.0, 0
        self.running: list[int] = []

    def run(self, batch: PackedBatch) -> Scores:
        """Arithmetic's scores."""
        self.runs += 1
        self.running = [*self.running, batch.candidates]
        sleep(self.takes_s)
        self.running = self.running[1:]
        return super().run(batch)


def until(happened: Callable[[], bool]) -> None:
    """Returns once it has."""
    end = monotonic() + PATIENCE_S
    while not happened():
        assert monotonic() < end, "it did not happen"
        sleep(0.005)


def of_requests(client: httpx.Client) -> dict[str, str]:
    """Every sample that tells of requests, calls or predictions."""
    told = ("mtgr_warm_ups", "mtgr_loop_lag", "process_", "#")
    lines = [line for line in client.get("/metrics").text.splitlines() if line]
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith(told))


def warm_ups(client: httpx.Client, outcome: str = "done") -> float:
    """How many there were."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f'mtgr_warm_ups_total{{outcome="{outcome}"}}'):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def test_the_last_request_is_ranked_again_and_never_counted_among_requests(
    redis_url: str, tmp_path: Path
) -> None:
    """Warm-ups reach the engine, and no metric but their own, nor the request log, tells of one."""
    engine = Counting()
    log_dir = tmp_path / "log"
    config = settings(redis_url, keep_warm_ms=5, request_log_dir=str(log_dir))
    with running(config, opener(SCHEMA, engine)) as client:
        assert client.post("/v1/rank", json=request()).status_code == 200
        sleep(1.2)  # counts that are gathered have come out
        before, seen = of_requests(client), engine.runs
        until(lambda: engine.runs >= seen + 5)
        sleep(1.2)
        assert of_requests(client) == before
        assert warm_ups(client) >= 5
    import pyarrow.parquet as pq

    assert sum(pq.read_metadata(file).num_rows for file in log_dir.glob("**/*.parquet")) == 1


def test_none_is_sent_while_a_request_is_at_work(redis_url: str) -> None:
    """For as long as a request takes, the engine runs that one alone."""
    engine = Counting()
    models = {"home": {"package": Path("unused"), "workers": 2}}
    with (
        running(
            settings(redis_url, models=models, keep_warm_ms=1), opener(SCHEMA, engine)
        ) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        client.post("/v1/rank", json=request())
        until(lambda: warm_ups(client) >= 1)
        engine.takes_s = 0.5
        slow = thread.submit(lambda: client.post("/v1/rank", json=request(7)))
        until(lambda: 7 in engine.running)
        while not slow.done():
            assert 3 not in engine.running[1:]  # one may have begun before it
            sleep(0.01)
        assert slow.result().status_code == 200


def test_none_is_sent_while_an_engine_is_switched(redis_url: str) -> None:
    """From the start of a switch until the new engine has proved itself, engines run requests
    only."""
    engine = Counting()
    config = settings(redis_url, keep_warm_ms=1, admin_token="secret")
    with running(config, opener(SCHEMA, engine)) as client:
        client.post("/v1/rank", json=request())
        until(lambda: warm_ups(client) >= 1)
        switched = client.post(
            "/v1/models/home/switch",
            json={"package": "another"},
            headers={"authorization": "Bearer secret"},
        )
        assert switched.status_code == 200, switched.text
        client.post("/v1/rank", json=request())
        before = warm_ups(client)
        sleep(0.3)
        assert warm_ups(client) == before


def test_by_default_there_are_none(redis_url: str) -> None:
    """A gateway spends nothing that nobody asked for."""
    engine = Counting()
    with running(settings(redis_url), opener(SCHEMA, engine)) as client:
        client.post("/v1/rank", json=request())
        seen = engine.runs
        sleep(0.3)
        assert engine.runs == seen


def test_a_degraded_answer_is_not_ranked_again(redis_url: str) -> None:
    """What fails already gets no more work."""

    class Failing(Counting):
        def run(self, batch: PackedBatch) -> Scores:
            if batch.candidates == 3:
                raise RuntimeError("fails")
            return super().run(batch)

    engine = Failing()
    with running(settings(redis_url, keep_warm_ms=1), opener(SCHEMA, engine)) as client:
        answer = client.post("/v1/rank", json=request(3)).json()
        assert answer["degraded"]
        sleep(0.2)
        assert warm_ups(client) == warm_ups(client, "failed") == 0


class Again:
    """A request to rank again, that notes each time."""

    def __init__(self, failure: Exception | None = None, takes_s: float = 0.0):
        self.failure, self.takes_s, self.times = failure, takes_s, 0
        self.at_once = self.most_at_once = 0

    async def __call__(self) -> None:
        self.times += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.takes_s)
        self.at_once -= 1
        if self.failure is not None:
            raise self.failure


def kept_warm(
    again: Again, free: Callable[[], bool] = lambda: True, for_s: float = 0.2, came: bool = False
) -> list[str]:
    """How the warm-ups ended, of `for_s` seconds; requests come all the time where `came`."""
    outcomes: list[str] = []

    async def run() -> None:
        warm = KeepWarm(0.02, free, outcomes.append)
        warm.answered(again)
        task = asyncio.create_task(warm.run())
        end = monotonic() + for_s
        while monotonic() < end:
            if came:
                warm.came()
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(run())
    return outcomes


def test_one_at_a_time_and_none_while_it_is_busy_or_requests_come() -> None:
    """A warm-up waits for the one before, for whatever keeps the gateway busy (a request, a switch,
    its end), and for a time without requests."""
    slow = Again(takes_s=0.05)
    assert set(kept_warm(slow)) == {"done"}
    assert slow.most_at_once == 1
    assert kept_warm(Again(), free=lambda: False) == []
    assert kept_warm(Again(), came=True) == []


@pytest.mark.parametrize("failure", [DependencyFailed("triton", "timeout"), RuntimeError("a bug")])
def test_what_fails_once_is_not_tried_again(failure: Exception) -> None:
    """A warm-up that fails is counted so, and is the last one until another request is answered."""
    again = Again(failure)
    assert kept_warm(again) == ["failed"]
    assert again.times == 1


def test_they_end_a_while_after_the_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A night without requests costs nothing."""
    monkeypatch.setattr(keep_warm, "FOR_S", 0.1)
    again = Again()
    assert 1 <= len(kept_warm(again, for_s=0.5)) <= 5
