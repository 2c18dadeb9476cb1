"""Laws of when requests are due."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.schedule import ARRIVALS, Arrivals, Stage, TooMany, parse_stages, schedule

stages = st.lists(
    st.builds(Stage, seconds=st.floats(0.1, 20), level=st.floats(1, 200)), min_size=1, max_size=4
)


@settings(deadline=None)
@given(stages, st.sampled_from(ARRIVALS), st.integers(0, 9))
def test_due_times_ascend_within_the_run(
    given_stages: list[Stage], arrivals: Arrivals, seed: int
) -> None:
    """Whatever the arrivals: due times ascend, none is past the end, each turn follows its last."""
    made = schedule(given_stages, arrivals, most=10**6, mean_session=3, seed=seed)
    assert (np.diff(made.due_s) >= 0).all()
    assert ((made.due_s >= 0) & (made.due_s < made.seconds + 1e-9)).all()
    last: dict[int, int] = {}
    for session, turn in zip(made.session.tolist(), made.turn.tolist(), strict=True):
        assert turn == last.get(session, -1) + 1
        last[session] = turn


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_rates_are_met(arrivals: Arrivals) -> None:
    """Each stage has as many requests as its rate says, within what chance explains."""
    made = schedule([Stage(60, 50), Stage(60, 200)], arrivals, most=10**6, mean_session=2.5, seed=1)
    counts = np.histogram(made.due_s, [0, 60, 120])[0]
    assert counts == pytest.approx([3000, 12000], rel=0.15)


def test_sessions_are_burstier_than_poisson_and_poisson_than_fixed() -> None:
    """The variance of requests a second orders the three kinds of arrivals."""
    variance = {}
    for arrivals in ARRIVALS:
        made = schedule([Stage(300, 50)], arrivals, most=10**6, mean_session=4, seed=2)
        variance[arrivals] = np.histogram(made.due_s, np.arange(301))[0][5:].var()
    assert variance["fixed"] < 1 < variance["poisson"] < variance["sessions"]


def test_a_run_is_bounded() -> None:
    """More requests than allowed are refused before the first is sent."""
    with pytest.raises(TooMany, match="2000 requests are due, at most 1000"):
        schedule([Stage(10, 200)], "poisson", most=1000)


@pytest.mark.parametrize("text", ["", "10", "10:", "0:5", "5:-1", "a:b", "10:5,", "inf:1", "1:nan"])
def test_unreadable_stages_are_refused(text: str) -> None:
    """What is no SECONDS:LEVEL is named with an example."""
    with pytest.raises(ValueError, match="expected SECONDS:LEVEL"):
        parse_stages(text)
