"""Training logs -> packed samples: a user's exposures between two snapshots share one sample.

Source: paper section 4.1. The window's events are its real-time sequence, and the mask gives each
exposure those before it; `split_window` cuts where one exposure would see another last-100 than
serving showed. So a sample of one request is byte-equal to that request as served.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_def.batch import PackedBatch, Sample, merge, pack, split_window
from model_def.data.logs import UNLABELLED, Logs, Requests
from model_def.schema import FeatureSchema


@dataclass(frozen=True)
class TrainingSample:
    """A packed window, the row of each of its candidates in `Requests.candidates`, and the time
    of its last request."""

    batch: PackedBatch
    rows: NDArray[np.int64]
    at_ms: int

    @property
    def tokens(self) -> int:
        """Length of the sample's token sequence, its profile's few tokens left out."""
        arrays = self.batch.arrays
        return sum(int(arrays[f"{s}_offsets"][-1]) for s in ("lifelong", "rt", "candidate"))


def training_samples(logs: Logs, *, as_served: bool = False) -> Iterator[TrainingSample]:
    """Every exposure of the logs once, in samples by user and time; `as_served`: by request."""
    schema, snapshots, requests = logs.schema, logs.snapshots, logs.requests
    events, none = logs.events.rows, np.zeros(0, np.int64)
    snapshots_of = _by_user(snapshots.user_id, snapshots.snapshot_ms)
    events_of = _by_user(logs.events.user_id, events["time_ms"])
    lifelong_ends = np.cumsum(snapshots.lifelong_counts)
    ends = np.cumsum(requests.candidate_counts)
    starts = ends - requests.candidate_counts
    for history, mine in _by_user(requests.history, requests.context["time_ms"]).items():
        own_snapshots, own_events = snapshots_of[history], events[events_of.get(history, none)]
        at = snapshots.snapshot_ms[own_snapshots]
        window_of = np.searchsorted(at, requests.context["time_ms"][mine], side="right") - 1
        for window in np.unique(window_of):
            snapshot, asked = own_snapshots[window], mine[window_of == window]
            after = own_events[own_events["time_ms"] > at[window]]
            times = requests.context["time_ms"][asked]
            parts = split_window(after["time_ms"], times, schema.realtime_cap)
            if as_served:
                parts = [slice(i, i + 1) for i in range(len(asked))]
            for part in parts:
                chosen = asked[part]
                rows = np.concatenate([np.arange(starts[i], ends[i]) for i in chosen])
                count, end = snapshots.lifelong_counts[snapshot], lifelong_ends[snapshot]
                sample = Sample(
                    snapshot_ms=int(at[window]),
                    profile=snapshots.profile[snapshot : snapshot + 1],
                    lifelong=snapshots.lifelong[end - count : end],
                    realtime=after,
                    context=requests.context[chosen],
                    candidates=requests.candidates[rows],
                    context_candidates=requests.candidate_counts[chosen],
                )
                yield TrainingSample(pack(schema, sample), rows, int(times[part][-1]))


def task_labels(requests: Requests, tasks: Sequence[str]) -> NDArray[np.float32]:
    """float32 [N, tasks]: 1, 0, or NaN where not labelled. ctr = click; ctcvr = click and order.

    An exposure without a click had no order; an order implies its click.
    """
    click, order = requests.click, requests.order
    labels = {
        "ctr": np.where(order == 1, 1, click),
        "ctcvr": np.where(click == 0, 0, order),
    }
    columns = [np.where(labels[t] == UNLABELLED, np.nan, labels[t]) for t in tasks]
    return np.stack(columns, 1).astype(np.float32)


def time_split(logs: Logs, at_ms: int) -> tuple[Logs, Logs]:
    """The logs' requests before `at_ms`, and those at it or later."""
    before = logs.requests.context["time_ms"] < at_ms
    return select_requests(logs, before), select_requests(logs, ~before)


def select_requests(logs: Logs, chosen: NDArray[np.bool_]) -> Logs:
    """The logs with only the `chosen` (bool [R]) requests."""
    requests = logs.requests
    rows = np.repeat(chosen, requests.candidate_counts)
    return replace(
        logs,
        requests=Requests(
            requests.request_id[chosen],
            requests.user_id[chosen],
            requests.scene[chosen],
            requests.context[chosen],
            requests.candidates[rows],
            requests.candidate_counts[chosen],
            requests.click[rows],
            requests.order[rows],
            requests.history[chosen],
        ),
    )


def token_batches(
    tokens: NDArray[np.int64], budget: int, rng: np.random.Generator, pool: int = 64
) -> list[NDArray[np.int64]]:
    """Shuffled batches of sample indices, each of at most `budget` tokens or of one sample.

    Samples of similar length share a batch: within pools of about `pool` batches, so that the
    order stays random.
    """
    shuffled = rng.permutation(len(tokens))
    pool_of = np.cumsum(tokens[shuffled]) // (budget * pool)
    order = shuffled[np.lexsort((tokens[shuffled], pool_of))]
    starts, used = [0], 0
    for i, length in enumerate(tokens[order].tolist()):
        if used and used + length > budget:
            starts.append(i)
            used = 0
        used += length
    batches = np.split(order, starts[1:]) if len(order) else []
    return [batches[i] for i in rng.permutation(len(batches))]


def joined(samples: Sequence[TrainingSample], schema: FeatureSchema) -> TrainingSample:
    """Several samples as one ragged batch."""
    batch = merge([sample.batch for sample in samples], schema)
    rows = np.concatenate([sample.rows for sample in samples])
    return TrainingSample(batch, rows, max(sample.at_ms for sample in samples))


def _by_user(user_id: NDArray[np.str_], time_ms: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Rows of each user, ascending in time."""
    users, codes = np.unique(user_id, return_inverse=True)
    order = np.lexsort((time_ms, codes))
    rows = np.split(order, np.searchsorted(codes[order], np.arange(1, len(users))))
    return dict(zip(users.tolist(), rows, strict=False))
