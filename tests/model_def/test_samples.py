"""Logs become training samples that are what serving would have packed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model_def.batch import Sample, pack
from model_def.data.logs import Logs
from model_def.data.samples import (
    joined,
    select_requests,
    task_labels,
    time_split,
    token_batches,
    training_samples,
)
from tests.model_def.log_examples import SCHEMA, logs


def as_served(log: Logs, request: int) -> Sample:
    """What serving knows of one request: the user's last snapshot, and every event it has seen."""
    user, at = log.requests.user_id[request], log.requests.context["time_ms"][request]
    known = np.flatnonzero((log.snapshots.user_id == user) & (log.snapshots.snapshot_ms <= at))
    last = known[np.argmax(log.snapshots.snapshot_ms[known])]
    lifelong = np.split(log.snapshots.lifelong, np.cumsum(log.snapshots.lifelong_counts))[last]
    candidates = np.split(log.requests.candidates, np.cumsum(log.requests.candidate_counts))
    return Sample(
        snapshot_ms=int(log.snapshots.snapshot_ms[last]),
        profile=log.snapshots.profile[[last]],
        lifelong=lifelong,
        realtime=log.events.rows[log.events.user_id == user],
        context=log.requests.context[[request]],
        candidates=candidates[request],
        context_candidates=log.requests.candidate_counts[[request]],
    )


@given(log=logs)
def test_one_request_sample_is_its_serving_pack(log: Logs) -> None:
    """A training sample of one request is byte-equal to that request as served."""
    for request in range(len(log.requests.request_id)):
        chosen = np.arange(len(log.requests.request_id)) == request
        (sample,) = training_samples(select_requests(log, chosen))
        served = pack(SCHEMA, as_served(log, request))
        assert sample.batch.buffer.tobytes() == served.buffer.tobytes()


@given(log=logs)
def test_every_exposure_sees_what_serving_showed(log: Logs) -> None:
    """In a window of several requests each exposure sees exactly the events of its serving pack."""
    owner = np.repeat(np.arange(len(log.requests.request_id)), log.requests.candidate_counts)
    for sample in training_samples(log):
        arrays = sample.batch.arrays
        for position, row in enumerate(sample.rows):
            served = pack(SCHEMA, as_served(log, owner[row])).arrays
            visible = arrays["candidate_visible"][position]
            for name in ("realtime_ids", "realtime_categories", "realtime_numbers"):
                width = len(served[name]) // max(1, len(served["rt_visible"]))
                assert np.array_equal(arrays[name][: visible * width], served[name])


@given(log=logs)
def test_every_exposure_is_in_one_sample(log: Logs) -> None:
    """Each exposure is trained on exactly once, with its own features and its request's context."""
    samples = list(training_samples(log))
    if not samples:
        assert not len(log.requests.candidates)
        return
    whole = joined(samples, SCHEMA)
    assert sorted(whole.rows) == list(range(len(log.requests.candidates)))
    ids = log.requests.candidates["ids"][whole.rows, 0]
    assert np.array_equal(whole.batch.arrays["candidate_ids"], ids)
    owner = np.repeat(np.arange(len(log.requests.request_id)), log.requests.candidate_counts)
    hours = log.requests.context["ids"][owner[whole.rows], 0]
    assert np.array_equal(whole.batch.arrays["context_ids"][whole.batch.candidate_context], hours)


@given(log=logs, at_ms=st.integers(0, 2000))
def test_time_split_is_by_request_time(log: Logs, at_ms: int) -> None:
    """Every request is on its side of the split, and none is lost."""
    before, after = time_split(log, at_ms)
    assert (before.requests.context["time_ms"] < at_ms).all()
    assert (after.requests.context["time_ms"] >= at_ms).all()
    both = {*before.requests.request_id.tolist(), *after.requests.request_id.tolist()}
    assert both == set(log.requests.request_id.tolist())
    assert len(before.requests.click) + len(after.requests.click) == len(log.requests.click)


@given(log=logs)
def test_labels_follow_click_and_order(log: Logs) -> None:
    """ctr is the click; ctcvr is click and order; what nobody observed is NaN."""
    labels = task_labels(log.requests, ("ctr", "ctcvr"))
    for (ctr, ctcvr), click, order in zip(
        labels, log.requests.click, log.requests.order, strict=True
    ):
        if order == 1:
            assert (ctr, ctcvr) == (1, 1)
        elif click == 0:
            assert (ctr, ctcvr) == (0, 0)
        else:
            assert ctr == 1 if click == 1 else np.isnan(ctr)
            assert ctcvr == 0 if order == 0 else np.isnan(ctcvr)


@given(
    tokens=st.lists(st.integers(1, 60), max_size=80),
    budget=st.integers(20, 200),
    seed=st.integers(0, 99),
)
def test_batches_hold_every_sample_within_budget(tokens: list[int], budget: int, seed: int) -> None:
    """Batches hold each sample once; one over the budget in tokens holds a single sample."""
    lengths = np.array(tokens, np.int64)
    batches = token_batches(lengths, budget, np.random.default_rng(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(tokens)))
    assert all(len(batch) == 1 or lengths[batch].sum() <= budget for batch in batches)
