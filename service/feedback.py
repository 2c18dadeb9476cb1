"""What was predicted beside what happened: calibration on live traffic.

The probabilities of recent answers are remembered here, and meet the exposures, clicks and orders
that callers report. Labels may come to another process than the one that answered; each then
counts the exposures and the outcomes that it happens to know, in equal shares, so the ratio of
outcomes to predictions is the same.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.ranking import Floats

OUTCOMES = {"click": "ctr", "order": "ctcvr"}
"""The task that predicts each action."""

REMEMBERED = 10_000
"""Answers, of some 2 KB each; the oldest is forgotten first."""


Predicted = tuple[NDArray[np.int64], Mapping[str, Floats]]
"""Items of an answer, and their probabilities by task."""


class Counts(Protocol):
    """Where it is counted."""

    def predicted(self, scene: str, task: str, probability: float) -> None:
        """An item was shown for which `task` had predicted `probability`."""

    def happened(self, scene: str, task: str) -> None:
        """What `task` predicts came true."""


class Feedback:
    """Predictions waiting for their outcomes."""

    def __init__(self, counts: Counts, remembered: int = REMEMBERED):
        self._counts, self._remembered = counts, remembered
        self._answers: OrderedDict[str, Predicted] = OrderedDict()

    def answered(
        self, request_id: str, item_ids: NDArray[np.int64], tasks: Mapping[str, Floats]
    ) -> None:
        """Remember the items of an answer and their probabilities; none, if no model ranked."""
        if not tasks:
            return
        self._answers[request_id] = item_ids, tasks
        self._answers.move_to_end(request_id)
        if len(self._answers) > self._remembered:
            self._answers.popitem(last=False)

    def reported(self, scene: str, labels: Iterable[Mapping[str, Any]]) -> None:
        """Count labels ("request_id", "item_id", "action") of answers that are remembered."""
        for label in labels:
            if label["request_id"] not in self._answers:
                continue
            item_ids, tasks = self._answers[label["request_id"]]
            at = np.flatnonzero(item_ids == label["item_id"])
            if not len(at):
                continue
            if label["action"] == "exposure":
                for task, probabilities in tasks.items():
                    self._counts.predicted(scene, task, float(probabilities[at[0]]))
            elif (task := OUTCOMES[label["action"]]) in tasks:
                self._counts.happened(scene, task)
