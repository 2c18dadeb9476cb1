"""Laws of the generator, against a real server with known behaviour."""

import socket
import time

import numpy as np
import pytest

from loadtest.goal import Goal
from loadtest.material import Material
from loadtest.open_loop import Limits, Measured, Supply, generate
from loadtest.outcome import SERVED, Outcome
from loadtest.request import Request
from loadtest.run import Run, summarize
from loadtest.schedule import Schedule, Stage, schedule
from loadtest.traffic import Mix, Traffic
from tests.loadtest.server import Behaviour, serving

LIMITS = Limits(give_up_ms=1500)


def fixed(seconds: float, rate: float) -> Schedule:
    return schedule([Stage(seconds, rate)], "fixed", most=10_000)


def summarized(measured: Measured, plan: Schedule) -> Run:
    return summarize(
        measured.samples,
        tool="open-loop",
        name="test",
        url="",
        seconds=plan.seconds,
        generator=measured.generator,
        goal=Goal(p99_ms=1000),
        settings={},
    )


def test_waiting_counts_from_the_intended_time(traffic: Traffic) -> None:
    """A server that stalls for 1 s shows it in every request that was due meanwhile."""
    plan = fixed(2.5, 50)
    with serving(Behaviour(stall_at=50, stall_s=1.0)) as url:
        measured = generate(url, traffic, plan, LIMITS)
    due, latency = measured.samples.due_s, measured.samples.latency_ms
    until = plan.due_s[49] + 1.0  # at the earliest: it arrived when it was due, or later
    stalled = (due > until - 0.9) & (due < until - 0.1)
    assert stalled.sum() >= 35
    assert (latency[stalled] >= 1e3 * (until - due[stalled]) - 40).all()  # 40: two may swap places
    assert np.median(latency[due < until - 1.1]) < 100


def test_waiting_awake_is_not_counted_as_work(traffic: Traffic) -> None:
    """A generator that waits in a loop keeps the schedule, and tells of its own work alone."""
    plan = fixed(1.0, 30)
    with serving(Behaviour()) as url:
        measured = generate(url, traffic, plan, Limits(busy_wait=True, max_lag_ms=1000))
    assert measured.samples.having(SERVED).sum() == len(plan.due_s)
    assert measured.generator.cpu_share < 0.7
    assert measured.generator.limited is None


def test_connections_that_are_all_busy_delay_the_rest(traffic: Traffic) -> None:
    """One connection to a server of 50 ms serves one request at a time; the wait is counted."""
    plan = fixed(0.5, 40)
    with serving(Behaviour(delay_s=0.05)) as url:
        measured = generate(url, traffic, plan, Limits(connections=1, give_up_ms=10_000))
    latency = measured.samples.latency_ms[np.argsort(measured.samples.due_s)]
    assert measured.waited >= 15
    assert latency[-1] >= 19 * 50 + 50 - 500  # twenty in a row, the last due after 475 ms
    assert len(latency) == 20


@pytest.mark.parametrize(
    ("behaviour", "outcome", "reason"),
    [
        (Behaviour(degrade_every=3), Outcome.DEGRADED, "redis_timeout"),
        (Behaviour(break_every=4), Outcome.FAILED, "500 internal"),
        (Behaviour(per_second=20), Outcome.REFUSED, "429 overloaded"),
        (Behaviour(wrong_id=True), Outcome.FAILED, "another request's answer"),
        (Behaviour(delay_s=0.4), Outcome.LATE, "answered after the deadline"),
    ],
)
def test_outcomes_are_told_apart(
    material: Material, behaviour: Behaviour, outcome: Outcome, reason: str
) -> None:
    """Whatever the server does, sent = answered + degraded + refused + invalid + late + failed."""
    mix = Mix(bad=0.1, events=0, candidates_median=5, deadline_ms=300)
    plan = schedule([Stage(1, 120)], "poisson", most=1000)
    with serving(behaviour) as url:
        measured = generate(url, Traffic(material, mix, sessions=64), plan, LIMITS)
    counts = measured.samples.outcomes()
    assert sum(counts.values()) == len(measured.samples) == len(plan.due_s)
    assert len(behaviour.seen) == len(plan.due_s)
    assert counts["invalid"] > 0
    assert measured.samples.reasons()[outcome][reason] > 0


def test_a_server_that_never_answers_is_late_and_the_run_ends(traffic: Traffic) -> None:
    """Each request is given up in time, counted as late, and its connection dropped."""
    plan = fixed(0.3, 50)
    started = time.monotonic()
    with serving(Behaviour(hang=True)) as url:
        measured = generate(url, traffic, plan, Limits(give_up_ms=400, connections=4))
        taken = time.monotonic() - started
    assert measured.samples.reasons() == {"late": {"no answer": 15}}
    assert measured.samples.latency_ms.min() >= 399
    assert taken < 10


def test_no_server_is_a_failure_of_each_request(traffic: Traffic) -> None:
    """Nobody listens: every request fails, with the reason."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    measured = generate(f"http://127.0.0.1:{port}", traffic, fixed(0.2, 50), LIMITS)
    assert measured.samples.reasons() == {"failed": {"no connection: ConnectionRefusedError": 10}}


def test_a_server_that_hangs_up_is_a_failure(traffic: Traffic) -> None:
    """A connection closed without an answer fails its request alone; the run goes on."""
    behaviour = Behaviour(hang_up_every=5)
    with serving(behaviour) as url:
        measured = generate(url, traffic, fixed(0.5, 50), LIMITS)
    counts = measured.samples.outcomes()
    assert counts["failed"] == 5
    assert counts["answered"] + counts["late"] == 20


class Slow(Supply):
    """Takes 30 ms to think of each request."""

    def __init__(self, traffic: Traffic):
        self._traffic = traffic

    def request(self, session: int, turn: int) -> Request:
        time.sleep(0.03)
        return self._traffic.request(session, turn)


def test_a_generator_that_is_too_slow_says_so(traffic: Traffic) -> None:
    """A run whose schedule lags for the generator's own fault does not pass."""
    plan = fixed(0.5, 100)
    with serving(Behaviour()) as url:
        run = summarized(generate(url, Slow(traffic), plan, Limits()), plan)
    assert run.generator.lag_p99_ms is not None
    assert run.generator.lag_p99_ms > 500  # 50 requests of 30 ms within half a second
    assert run.generator.limited is not None
    assert run.generator.limited in run.missed


def test_stages_come_from_the_server(traffic: Traffic) -> None:
    """Server-Timing's stages are summarized, its total left out."""
    plan = fixed(0.3, 50)
    with serving(Behaviour()) as url:
        run = summarized(generate(url, traffic, plan, LIMITS), plan)
    assert {stage: taken.p50 for stage, taken in run.stages.items()} == {
        "decode": 0.25,
        "backend": 1.5,
    }


def test_a_refusal_does_not_make_a_service_look_fast(traffic: Traffic) -> None:
    """Latency is of the served alone; refusals have their own."""
    plan = fixed(1, 100)
    with serving(Behaviour(per_second=20, delay_s=0.05)) as url:
        measured = generate(url, traffic, plan, LIMITS)
    run = summarized(measured, plan)
    assert run.latency is not None
    assert run.refusals is not None
    assert run.latency.count == int(measured.samples.having(SERVED).sum())
    assert run.latency.count + run.refusals.count == 100
