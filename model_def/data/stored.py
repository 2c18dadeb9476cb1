"""Training logs as a feature store would hold them at a moment: users and items."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model_def.batch import Rows
from model_def.data.logs import Logs
from model_def.data.traffic import StoredUser


def users_of(logs: Logs, until_ms: int) -> Iterator[StoredUser]:
    """Each user's newest snapshot not later than `until_ms`, and what they did after it.

    Events at or after `until_ms` stay out: a request of that time must not see them. So do
    histories that are not a user's own (see `model_def.data.logs`).
    """
    snapshots, events = logs.snapshots, logs.events
    requests = logs.requests
    others = requests.history[requests.history != requests.user_id]
    own = ~np.isin(snapshots.user_id, others)
    known = np.flatnonzero(own & (snapshots.snapshot_ms <= until_ms))
    known = known[np.argsort(snapshots.snapshot_ms[known], kind="stable")]
    newest = dict(zip(snapshots.user_id[known].tolist(), known.tolist(), strict=True))
    ends = np.cumsum(snapshots.lifelong_counts)

    order = np.lexsort((events.rows["event_id"], events.rows["time_ms"], events.user_id))
    order = order[events.rows["time_ms"][order] < until_ms]
    owners = events.user_id[order]
    for user_id, row in newest.items():
        low, high = (int(np.searchsorted(owners, user_id, side)) for side in ("left", "right"))
        after = events.rows[order[low:high]]
        snapshot_ms = int(snapshots.snapshot_ms[row])
        yield StoredUser(
            user_id=user_id,
            snapshot_ms=snapshot_ms,
            profile=snapshots.profile[row : row + 1],
            lifelong=snapshots.lifelong[ends[row] - snapshots.lifelong_counts[row] : ends[row]],
            realtime=after[after["time_ms"] > snapshot_ms],
        )


def items_of(logs: Logs, until_ms: int) -> tuple[Rows, NDArray[np.float64]]:
    """Items as they were last shown before `until_ms`, and how often each was clicked."""
    requests, schema = logs.requests, logs.schema
    shown_ms = np.repeat(requests.context["time_ms"], requests.candidate_counts)
    shown = np.flatnonzero(shown_ms < until_ms)
    shown = shown[np.argsort(shown_ms[shown], kind="stable")]
    candidate, item = schema.layouts["candidate"], schema.layouts["item"]
    names = [feature.name for feature in candidate.ids]
    ids = requests.candidates["ids"][shown, names.index("item_id")]
    _, last_from_end, owner = np.unique(ids[::-1], return_index=True, return_inverse=True)
    rows: Rows = np.zeros(len(last_from_end), item.record)
    source = requests.candidates[shown[len(shown) - 1 - last_from_end]]
    for carrier in ("ids", "categories", "numbers"):
        features = getattr(candidate, carrier)
        for place, feature in enumerate(getattr(item, carrier)):
            rows[carrier][:, place] = source[carrier][:, features.index(feature)]
    clicks = np.bincount(owner, requests.click[shown[::-1]] == 1, minlength=len(rows))
    return rows, clicks.astype(np.float64)
