"""Predictions meet what is reported of them."""

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.feedback import Feedback
from tests.service.world import request


class Tally:
    """Counts in memory."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.outcomes: list[str] = []

    def predicted(self, scene: str, task: str, probability: float) -> None:
        self.sums[task] = self.sums.get(task, 0.0) + probability

    def happened(self, scene: str, task: str) -> None:
        self.outcomes.append(task)


def answered(feedback: Feedback, request_id: str, *probabilities: float) -> None:
    """Items 1, 2, ... with these probabilities of a click, and half of an order."""
    values = np.array(probabilities, np.float32)
    ids = np.arange(len(values)) + 1
    feedback.answered(request_id, ids, {"ctr": values, "ctcvr": values / 2})


def label(request_id: str, item_id: int, action: str) -> dict[str, object]:
    return {"request_id": request_id, "item_id": item_id, "action": action}


def test_exposures_add_what_was_predicted_and_outcomes_are_counted() -> None:
    """Of items that were answered, and of requests that are remembered, only."""
    tally = Tally()
    feedback = Feedback(tally)
    answered(feedback, "a", 0.5, 0.25)
    labels = [label("a", 1, "exposure"), label("a", 2, "exposure"), label("a", 2, "click")]
    labels += [label("a", 9, "exposure"), label("unknown", 1, "exposure"), label("a", 2, "order")]
    feedback.reported("home", labels)
    assert tally.sums == pytest.approx({"ctr": 0.75, "ctcvr": 0.375})
    assert tally.outcomes == ["ctr", "ctcvr"]


def test_memory_is_bounded_and_the_oldest_answer_goes_first() -> None:
    """However many answers there are."""
    tally = Tally()
    feedback = Feedback(tally, remembered=2)
    for name in "abc":
        answered(feedback, name, 0.5)
    feedback.reported("home", [label(name, 1, "exposure") for name in "abc"])
    assert tally.sums["ctr"] == pytest.approx(1.0)


def test_feedback_over_http_reaches_the_metrics(client: httpx.Client, user_id: str) -> None:
    """Rank, report an exposure and a click: both counters of the task move."""

    def sums() -> dict[str, float]:
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
            if sample.name.startswith("mtgr_feedback") and sample.labels["task"] == "ctr"
        }

    answer = client.post("/v1/rank", json=request(2) | {"request_id": f"feedback {user_id}"}).json()
    item, before = answer["items"][0], sums()
    events = [
        {
            "event_id": f"{user_id} {action}",
            "timestamp": 1_760_000_000_000,
            "label": label(answer["request_id"], item["item_id"], action),
        }
        for action in ("exposure", "click")
    ]
    done = client.post("/v1/events", json={"user_id": user_id, "events": events})
    assert done.status_code == httpx.codes.OK, done.text
    moved = {name: value - before.get(name, 0.0) for name, value in sums().items()}
    assert moved["mtgr_feedback_predicted_total"] == pytest.approx(item["ctr"], rel=1e-5)
    assert moved["mtgr_feedback_happened_total"] == 1
