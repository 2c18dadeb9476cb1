"""Served requests -> training logs in which each sees exactly what it saw when it was served.

Requests of one user share a history, a snapshot and the events after it, as long as the logs'
rule (strictly earlier events, the last `realtime_cap`) gives each what it saw. Where it would not,
because a snapshot or an event reached the store after a request that it should have preceded, a
new history begins. So a training sample is the serving pack, byte for byte, by construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model_def.batch import Rows, Sample, realtime_window
from model_def.data.attribution import Outcome
from model_def.data.logs import Events, Logs, Requests, Snapshots
from model_def.schema import FeatureSchema
from model_def.served import ServedRequest


@dataclass
class History:
    """One snapshot of a user and the events after it that requests have seen so far."""

    name: str
    sample: Sample
    cap: int
    events: Rows
    last_ms: int = -1
    known: dict[int, bytes] = field(default_factory=dict)

    def take(self, sample: Sample) -> bool:
        """Whether a later request saw this history; if so, its events are known from now on."""
        seen, mine, time_ms = sample.realtime, self.sample, int(sample.context["time_ms"][0])
        if (
            sample.snapshot_ms != mine.snapshot_ms
            or sample.profile.tobytes() != mine.profile.tobytes()
            or sample.lifelong.tobytes() != mine.lifelong.tobytes()
        ):
            return False
        fresh = np.array([i not in self.known for i in seen["event_id"].tolist()], np.bool_)
        if (seen["time_ms"][fresh] < self.last_ms).any():
            return False  # an earlier request would see it too
        if any(self.known[int(row["event_id"])] != row.tobytes() for row in seen[~fresh]):
            return False
        events = np.concatenate([self.events, seen[fresh]])
        window = realtime_window(events, mine.snapshot_ms, time_ms, self.cap)
        if window.tobytes() != seen.tobytes():
            return False  # it saw less than is known of that time
        self.events, self.last_ms = events, time_ms
        self.known |= {int(row["event_id"]): row.tobytes() for row in seen[fresh]}
        return True


def logs_of(
    schema: FeatureSchema, served: Sequence[ServedRequest], outcomes: Sequence[Outcome], part: int
) -> Logs:
    """Logs of the candidates shown; `part` makes the names of histories unique among parts.

    Each request has shown at least one candidate and is not earlier than its own snapshot.
    """
    order = sorted(range(len(served)), key=lambda i: served[i].time_ms)
    latest: dict[str, History] = {}
    histories: list[History] = []
    of = [""] * len(served)
    for i in order:
        user, sample = served[i].user_id, served[i].sample
        history = latest.get(user)
        if history is None or not history.take(sample):
            name = f"{user}@{part}.{len(histories)}"
            history = History(name, sample, schema.realtime_cap, sample.realtime[:0])
            if not history.take(sample):
                raise AssertionError("a request does not see its own history")
            histories.append(history)
            latest[user] = history
        of[i] = history.name
    return Logs(
        schema,
        Snapshots(
            np.array([h.name for h in histories]),
            np.array([h.sample.snapshot_ms for h in histories], np.int64),
            np.concatenate([h.sample.profile for h in histories]),
            np.concatenate([h.sample.lifelong for h in histories]),
            np.array([len(h.sample.lifelong) for h in histories], np.int32),
        ),
        Events(
            np.repeat([h.name for h in histories], [len(h.events) for h in histories]),
            np.concatenate([h.events for h in histories]),
        ),
        _requests(served, outcomes, of),
    )


def _requests(
    served: Sequence[ServedRequest], outcomes: Sequence[Outcome], of: list[str]
) -> Requests:
    def shown(values: list[NDArray[np.bool_]]) -> NDArray[np.int8]:
        pairs = zip(values, outcomes, strict=True)
        return np.concatenate([v[o.shown] for v, o in pairs]).astype(np.int8)

    pairs = list(zip(served, outcomes, strict=True))
    return Requests(
        np.array([one.request_id for one in served]),
        np.array([one.user_id for one in served]),
        np.array([one.scene for one in served]),
        np.concatenate([one.sample.context for one in served]),
        np.concatenate([one.sample.candidates[o.shown] for one, o in pairs]),
        np.array([o.shown.sum() for o in outcomes], np.int32),
        shown([o.clicked for o in outcomes]),
        shown([o.ordered for o in outcomes]),
        np.array(of),
    )
