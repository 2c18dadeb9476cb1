"""Training logs: what was known of users, what they did, and what they were shown.

The noun that every source of data makes (simulator, importer, served traffic) and training
reads. On disk (`model_def.data.parquet`) it is a directory:

    schema.json         FeatureSchema
    snapshots.parquet   a row each time that a user's profile and lifelong sequence were frozen
        user_id             string
        snapshot_ms         int64, ms since the epoch; (user_id, snapshot_ms) is unique
        profile.<feature>   one column a profile feature
        lifelong.time_ms    list<int64>, ascending, none later than snapshot_ms
        lifelong.<feature>  list<...>, one column a behaviour feature, each as long as time_ms
    events.parquet      a row each behaviour event; those after a snapshot are its real-time part
        user_id             string
        event_id            int64, unique for a user; orders events of equal time
        time_ms             int64
        <feature>           one column a behaviour feature
    exposures.parquet   a row each candidate shown; the rows of one request_id are one request
        request_id          string
        user_id             string, one for the request
        scene               string, one for the request
        time_ms             int64, one for the request; not before the user's first snapshot
        context.<feature>   one column a context feature, one value for the request
        candidate.<feature> one column an item or cross feature, as it was when shown; item_id is
                            unique in its request
        click, order        int8: 1 yes, 0 no, null not labelled; an order implies a click
        history             string, optional: the `user_id` under which snapshots and events hold
                            what this request saw; by default the user's own. One user's served
                            requests need several where a snapshot or an event came in after its
                            time, so that a sample holds what was there when it was served.

Each of the three may be a directory of Parquet files instead, read as one in order of name. Ids
and categories are integers, numbers are integers or floats. A feature with a default may be null,
or its column absent. Needs NumPy only: the simulator makes logs where no Parquet exists.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_def.batch import Rows
from model_def.schema import FeatureSchema

UNLABELLED = -1
"""The click or order of an exposure that nobody observed; null on disk."""


class LogError(ValueError):
    """A log that cannot be read at all; the message names the file, the column and the remedy."""


@dataclass(frozen=True)
class Snapshots:
    """S static parts of users; `lifelong` holds `lifelong_counts[i]` rows for snapshot i."""

    user_id: NDArray[np.str_]
    snapshot_ms: NDArray[np.int64]
    profile: Rows
    lifelong: Rows
    lifelong_counts: NDArray[np.int32]


@dataclass(frozen=True)
class Events:
    """E behaviour events, as rows of the `realtime` layout, in any order."""

    user_id: NDArray[np.str_]
    rows: Rows


@dataclass(frozen=True)
class Requests:
    """R requests and the N candidates that they exposed, `candidate_counts[i]` for request i.

    `context` carries each request's time. `click` and `order` are int8 [N]: 1, 0 or UNLABELLED.
    `history` is the `user_id` of the snapshots and events that each request saw.
    """

    request_id: NDArray[np.str_]
    user_id: NDArray[np.str_]
    scene: NDArray[np.str_]
    context: Rows
    candidates: Rows
    candidate_counts: NDArray[np.int32]
    click: NDArray[np.int8]
    order: NDArray[np.int8]
    history: NDArray[np.str_] = None  # type: ignore[assignment] # the user's own, below

    def __post_init__(self) -> None:
        if self.history is None:
            object.__setattr__(self, "history", self.user_id)


@dataclass(frozen=True)
class Logs:
    """All that training reads."""

    schema: FeatureSchema
    snapshots: Snapshots
    events: Events
    requests: Requests
