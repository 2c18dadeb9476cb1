"""Laws of the search for the highest rate."""

from collections.abc import Callable
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.goal import Goal
from loadtest.open_loop import Limits, generate
from loadtest.outcome import Outcome
from loadtest.run import Generator, Run, summarize
from loadtest.samples import Samples
from loadtest.schedule import Stage, schedule
from loadtest.search import Bounds, search
from loadtest.traffic import Traffic
from tests.loadtest.server import Behaviour, serving
from tests.loadtest.test_run import REQUEST


def trial(rate: float, latency_ms: float, limited: str | None = None) -> Run:
    samples = Samples()
    samples.add(REQUEST, 0, latency_ms, Outcome.ANSWERED, "")
    return summarize(
        samples,
        tool="search",
        name="trial",
        url="",
        seconds=1,
        generator=Generator("open", 0, 0, 0, limited),
        goal=Goal(p99_ms=50),
        settings={"rate": rate},
    )


def capacity_of(capacity: float) -> Callable[[float], Run]:
    return lambda rate: trial(rate, 10 if rate <= capacity else 100)


@settings(max_examples=30, deadline=None)
@given(st.floats(20, 4000), st.floats(0.01, 0.3))
def test_it_brackets_the_capacity(capacity: float, resolution: float) -> None:
    """Of a server that meets the goal up to a capacity, the search ends within the resolution."""
    found = search(capacity_of(capacity), Bounds(10, 5000, resolution))
    assert found.rate is not None
    assert found.rate <= capacity
    assert found.stopped is None
    if found.missed_at is not None:
        assert capacity < found.missed_at <= found.rate * (1 + resolution)
    else:
        assert found.rate == 5000
    assert len(found.trials) <= 2 * (log2(5000 / 10) + log2(1 / resolution) + 4)
    assert found.best.settings["rate"] == found.rate


def test_one_lucky_trial_settles_nothing() -> None:
    """A rate that meets the goal once in three is not found."""
    made: dict[float, int] = {}

    def flaky(rate: float) -> Run:
        made[rate] = made.get(rate, 0) + 1
        return trial(rate, 10 if rate <= 100 or made[rate] == 1 else 100)

    assert search(flaky, Bounds(100, 400, 0.1)).rate == 100
    assert made[200] == 3


def test_nothing_meets_the_goal() -> None:
    """Where the lowest rate misses, there is no answer, and no lower rate is invented."""
    found = search(capacity_of(5), Bounds(10, 100))
    assert found.rate is None
    assert found.missed_at == 10
    assert found.best.missed


def test_the_generators_limit_ends_the_search() -> None:
    """A trial that the generator spoiled says nothing of the server: what was met stands."""
    found = search(lambda rate: trial(rate, 10, "slow" if rate > 300 else None), Bounds(100, 5000))
    assert (found.rate, found.missed_at, found.stopped) == (200, None, "slow")


def test_trials_are_bounded() -> None:
    """The search ends after its most trials with what it has."""
    found = search(capacity_of(777), Bounds(10, 5000, 0.001, most_trials=9))
    assert len(found.trials) == 9
    assert found.stopped is not None
    assert found.rate is not None


@pytest.mark.parametrize("wrong", [(0, 10), (20, 10)])
def test_impossible_bounds_are_refused(wrong: tuple[float, float]) -> None:
    """The range must be one."""
    with pytest.raises(ValueError, match="expected 0 < low <= high"):
        Bounds(*wrong)


def test_it_finds_the_capacity_of_a_real_server(traffic: Traffic) -> None:
    """A server that refuses beyond 100 requests a second is found to have that capacity."""

    def measure(rate: float) -> Run:
        plan = schedule([Stage(1, rate)], "fixed", most=10_000)
        measured = generate(url, traffic, plan, Limits(max_lag_ms=1000))
        return summarize(
            measured.samples,
            tool="search",
            name="trial",
            url=url,
            seconds=1,
            generator=measured.generator,
            goal=Goal(p99_ms=1000, unserved=0.05),
            settings={},
        )

    with serving(Behaviour(per_second=100, bucket=20)) as url:
        found = search(measure, Bounds(60, 240, 0.2))
    assert found.rate is not None
    assert 75 < found.rate <= (100 + 20) / 0.95  # a full bucket, and 5% may be refused
