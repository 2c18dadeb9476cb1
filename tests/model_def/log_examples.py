"""Small training logs, random and by hand, for the tests of logs, samples and training."""

import numpy as np
from hypothesis import strategies as st

from model_def.data.logs import UNLABELLED, Events, Logs, Requests, Snapshots
from model_def.rows import rows_from_columns
from model_def.schema import CategoryFeature, FeatureSchema, IdFeature, NumberFeature

SCHEMA = FeatureSchema(
    name="example",
    profile=(CategoryFeature(name="age", size=8), NumberFeature(name="spend")),
    behaviour=(IdFeature(name="item_id"), CategoryFeature(name="action", size=3)),
    item=(IdFeature(name="item_id"), NumberFeature(name="price", default=1.5)),
    cross=(NumberFeature(name="distance"),),
    context=(CategoryFeature(name="hour", size=24),),
    lifelong_cap=6,
    realtime_cap=4,
)


def random_logs(seed: int, users: int = 3, requests: int = 12, events: int = 30) -> Logs:
    """Logs of a few users: two snapshots each (times 0 and 1000), everything else after them."""
    rng = np.random.default_rng(seed)
    layouts = SCHEMA.layouts
    names = np.array([f"user {i}" for i in range(users)])

    lengths = rng.integers(0, 9, 2 * users).astype(np.int32)
    total = int(lengths.sum())
    snapshots = Snapshots(
        np.repeat(names, 2),
        np.tile(np.array([0, 1000]), users),
        rows_from_columns(
            layouts["profile"],
            {"age": rng.integers(0, 8, 2 * users), "spend": rng.random(2 * users)},
            2 * users,
        ),
        rows_from_columns(
            layouts["lifelong"],
            {"item_id": rng.integers(-9, 9, total), "action": rng.integers(0, 3, total)},
            total,
            {"time_ms": np.zeros(total, np.int64)},
        ),
        lengths,
    )
    happened = Events(
        names[rng.integers(0, users, events)],
        rows_from_columns(
            layouts["realtime"],
            {"item_id": rng.integers(-9, 9, events), "action": rng.integers(0, 3, events)},
            events,
            {"time_ms": rng.integers(0, 2000, events), "event_id": rng.permutation(events)},
        ),
    )
    counts = rng.integers(1, 5, requests).astype(np.int32)
    shown = int(counts.sum())
    click = rng.integers(-1, 2, shown).astype(np.int8)
    order = np.where(click == 0, np.minimum(0, click), rng.integers(-1, 2, shown)).astype(np.int8)
    assert UNLABELLED == -1
    asked = Requests(
        np.array([f"request {i}" for i in range(requests)]),
        names[rng.integers(0, users, requests)],
        np.array(["home", "search"])[rng.integers(0, 2, requests)],
        rows_from_columns(
            layouts["context"],
            {"hour": rng.integers(0, 24, requests)},
            requests,
            {"time_ms": rng.integers(0, 2000, requests)},
        ),
        rows_from_columns(
            layouts["candidate"],
            {
                "item_id": np.array(
                    [i for count in counts for i in rng.permutation(50)[:count]], np.int64
                ),
                "price": rng.random(shown),
                "distance": rng.random(shown),
            },
            shown,
        ),
        counts,
        click,
        order,
    )
    return Logs(SCHEMA, snapshots, happened, asked)


logs = st.builds(
    random_logs,
    seed=st.integers(0, 10**6),
    users=st.integers(1, 4),
    requests=st.integers(0, 12),
    events=st.integers(0, 40),
)
