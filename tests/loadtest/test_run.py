"""Laws of the document, the goal, and comparisons."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.compare import compare
from loadtest.goal import Goal
from loadtest.outcome import SERVED, Outcome, Reply, judge, server_timing
from loadtest.request import Request
from loadtest.run import BadRun, Generator, Latency, Run, read_run, summarize, write_run
from loadtest.samples import MOST_WORDS, Samples

REQUEST = Request("rank msgpack", "/v1/rank", "application/msgpack", b"")
latencies = st.lists(st.integers(1, 10**6).map(lambda n: n / 1000), min_size=1, max_size=300)
rows = st.lists(
    st.tuples(st.floats(0, 9.99), st.floats(0.1, 1e4), st.sampled_from(list(Outcome))), max_size=80
)


def document(given_rows: list[tuple[float, float, Outcome]], goal: Goal | None = None) -> Run:
    samples = Samples()
    for due_s, latency_ms, outcome in given_rows:
        samples.add(REQUEST, due_s, latency_ms, outcome, f"because {outcome}")
    return summarized(samples, goal)


def summarized(samples: Samples, goal: Goal | None = None) -> Run:
    return summarize(
        samples,
        tool="open-loop",
        name="a run",
        url="http://127.0.0.1:1",
        seconds=10,
        generator=Generator("open", 0.1, 0.2, 0.3, None),
        goal=goal or Goal(p99_ms=50),
        settings={"seed": 1},
        stages=[("slow", 4), ("fast", 6)],
    )


@settings(deadline=None)
@given(latencies)
def test_a_percentile_is_the_smallest_latency_that_covers_its_share(values: list[float]) -> None:
    """p99 is a latency that was seen; at least 99% are no greater, and fewer lie below it."""
    taken = Latency.of(np.array(values))
    assert taken is not None
    for percent, value in [
        (50, taken.p50),
        (90, taken.p90),
        (99, taken.p99),
        (99.9, taken.p999),
        (100, taken.max),
    ]:
        assert value in values
        assert sum(v <= value for v in values) >= percent / 100 * len(values) - 1e-9
        assert sum(v < value for v in values) < percent / 100 * len(values)


def test_what_the_generator_was_late_by_is_told_apart() -> None:
    """The latency counts from when a request was due, and beside it from when it was sent."""
    samples = Samples()
    samples.add(REQUEST, 0, 30.0, Outcome.ANSWERED, "", lag_ms=25.0)
    run = summarized(samples)
    assert run.latency is not None
    assert run.since_sent is not None
    assert (run.latency.max, run.since_sent.max) == (30.0, 5.0)


@settings(deadline=None)
@given(rows)
def test_every_view_counts_the_same_requests(
    given_rows: list[tuple[float, float, Outcome]],
) -> None:
    """Windows, steps, reasons and totals add up to what was sent."""
    run = document(given_rows)
    served = sum(outcome in SERVED for *_, outcome in given_rows)
    assert run.sent == sum(run.outcomes.values()) == len(given_rows)
    for parts in (run.windows, run.steps):
        assert sum(sum(part.outcomes.values()) for part in parts) == len(given_rows)
        assert sum(part.latency.count for part in parts if part.latency is not None) == served
    assert sum(sum(words.values()) for words in run.reasons.values()) == len(given_rows)
    assert sum(sum(w.refused.values()) for w in run.windows) == run.outcomes[Outcome.REFUSED]
    assert (0 if run.latency is None else run.latency.count) == served


@settings(deadline=None)
@given(rows)
def test_a_run_reads_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, given_rows: list[tuple[float, float, Outcome]]
) -> None:
    """The JSON document loses nothing."""
    run, path = document(given_rows), tmp_path_factory.mktemp("runs") / "run.json"
    write_run(run, path)
    assert read_run(path) == run


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """Another document is refused with its path."""
    path = tmp_path / "other.json"
    path.write_text('{"format": "another"}')
    with pytest.raises(BadRun, match=r"other\.json"):
        read_run(path)


def test_reasons_are_bounded() -> None:
    """A server that invents a reason for each answer fills no report."""
    samples = Samples()
    for number in range(1000):
        samples.add(REQUEST, 0, 1, Outcome.FAILED, f"reason {number}")
    words = samples.reasons()["failed"]
    assert len(words) == MOST_WORDS + 1
    assert words["other"] == 1000 - MOST_WORDS


@pytest.mark.parametrize(
    ("counts", "p99_ms", "missed"),
    [
        ({"answered": 1000}, 50.0, []),
        ({"answered": 990, "refused": 10}, 50.0, []),
        ({"answered": 990, "invalid": 500}, 50.0, []),
        ({"answered": 1000}, 50.1, ["p99 50.1 ms, goal 50 ms"]),
        ({"answered": 989, "late": 11}, 9.0, ["1.10% not answered in full, goal 1.00%"]),
        ({"answered": 999, "failed": 1}, 9.0, ["0.10% failed, goal 0.00%"]),
        ({"invalid": 10}, None, ["nothing was served"]),
        ({}, None, ["nothing was served"]),
    ],
)
def test_the_goal(counts: dict[str, int], p99_ms: float | None, missed: list[str]) -> None:
    """The goal is met at its limits and missed beyond them, of valid requests only."""
    outcomes = {outcome.value: counts.get(outcome, 0) for outcome in Outcome}
    assert Goal(p99_ms=50).missed(outcomes, p99_ms) == missed


RANK = Request("rank", "/v1/rank", "", b"", 100, request_id="r", items=1)
ANSWER = b'{"request_id": "r", "degraded": false, "reason": null, "items": [{"item_id": 1}]}'
IS_JSON = {"content-type": "application/json; charset=utf-8"}
BAD = Request("bad body", "/v1/rank", "", b"", status=422)


@pytest.mark.parametrize(
    ("request_", "status", "headers", "body", "latency_ms", "outcome"),
    [
        (RANK, 200, IS_JSON, ANSWER, 100, "answered"),
        (RANK, 200, IS_JSON, ANSWER, 100.1, "late"),
        (RANK, 200, IS_JSON, ANSWER.replace(b"false", b"true"), 9, "degraded"),
        (RANK, 200, IS_JSON, ANSWER[:-2], 9, "failed"),
        (RANK, 200, IS_JSON, ANSWER.replace(b'{"item_id": 1}', b""), 9, "failed"),
        (RANK, 200, {}, ANSWER, 9, "failed"),
        (RANK, 422, IS_JSON, b"{}", 9, "failed"),
        (RANK, 429, {}, b"", 9, "refused"),
        (RANK, 429, {}, b"", 101, "late"),
        (RANK, 503, {"retry-after": "1"}, b"", 9, "refused"),
        (RANK, 503, {}, b"", 9, "failed"),
        (BAD, 422, IS_JSON, b"", 9, "invalid"),
        (BAD, 429, IS_JSON, b"", 9, "refused"),
        (BAD, 200, IS_JSON, ANSWER, 9, "failed"),
    ],
)
def test_a_reply_has_one_outcome(
    request_: Request,
    status: int,
    headers: dict[str, str],
    body: bytes,
    latency_ms: float,
    outcome: str,
) -> None:
    """What a reply counts as follows from what was asked, what came, and when."""
    assert judge(request_, Reply(status, headers, body), latency_ms)[0] == outcome


def test_server_timing() -> None:
    """Stages are read in order; the total and what has no duration are left out."""
    header = 'read;dur=0.5, cache;desc="hit", backend;dur=2, total;dur=2.5'
    assert server_timing(header) == {"read": 0.5, "backend": 2.0}
    assert server_timing("") == {}


def test_a_comparison_divides_second_by_first() -> None:
    """Ratios are second over first; settings that differ are told."""
    first = document([(1, 10, Outcome.ANSWERED), (2, 10, Outcome.REFUSED)])
    second = document([(1, 30, Outcome.ANSWERED)])
    second.settings = {"seed": 2}
    comparison = compare(first, second)
    ratios = {row.measure: row.ratio for row in comparison.rows}
    assert ratios["latency p99"] == 3
    assert ratios["rate"] == 0.5
    assert ratios["answered"] == 2
    assert ratios["failed"] is None
    assert comparison.different == {"seed": (1, 2)}
