"""The simulated marketplace: its truth is true, its past precedes its present, its logs valid."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model_def.data.bodies import rank_body
from model_def.data.parquet import read_logs, write_logs
from model_def.data.past import Past
from model_def.data.simulate import Simulated, simulate
from model_def.data.simulator import CLICK, DAY_MS, HOME, HOUR_MS, ORDER, SCHEMA, Marketplace
from model_def.data.traffic import Traffic, latest_snapshot, stored_items, stored_users
from model_def.data.truth import read_truth, write_truth
from model_def.rows import rows_from_columns

START_MS = 1_767_571_200_000  # 2026-01-05, a Monday


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    """Three days of a small city."""
    return simulate(Marketplace(users=80, items=100, seed=3), START_MS, days=3, seed=3)


def test_labels_follow_the_true_probabilities(simulated: Simulated) -> None:
    """In every tenth by true probability, positives are within four standard deviations of it."""
    requests = simulated.logs.requests
    for task, label in enumerate((requests.click, requests.order)):
        p = simulated.truth[:, task]
        for rows in np.array_split(np.argsort(p), 10):
            spread = np.sqrt((p[rows] * (1 - p[rows])).sum())
            assert abs(label[rows].sum() - p[rows].sum()) < 4 * spread


def test_logs_are_valid(simulated: Simulated, tmp_path: Path) -> None:
    """Simulated logs are read back without a rejected row, and their truth beside them."""
    write_logs(tmp_path, simulated.logs)
    write_truth(tmp_path, simulated.logs, simulated.truth)
    logs, rejects = read_logs(tmp_path)
    assert not rejects.counts
    assert np.array_equal(logs.requests.candidates, simulated.logs.requests.candidates)
    truth = read_truth(tmp_path, logs)
    assert truth is not None
    assert np.array_equal(truth, simulated.truth)


def test_same_seed_same_logs(simulated: Simulated) -> None:
    """A seed gives the same marketplace and the same traffic; another seed gives others."""
    again = simulate(Marketplace(users=80, items=100, seed=3), START_MS, days=3, seed=3)
    other = simulate(Marketplace(users=80, items=100, seed=4), START_MS, days=3, seed=4)
    assert np.array_equal(again.truth, simulated.truth)
    assert np.array_equal(again.logs.requests.click, simulated.logs.requests.click)
    assert not np.array_equal(other.truth[:100], simulated.truth[:100])


def test_snapshots_precede_what_they_serve(simulated: Simulated) -> None:
    """Lifelong sequences end at their snapshot, and real-time behaviour starts after it."""
    snapshots, events = simulated.logs.snapshots, simulated.logs.events
    owner = np.repeat(np.arange(len(snapshots.snapshot_ms)), snapshots.lifelong_counts)
    assert (snapshots.lifelong["time_ms"] <= snapshots.snapshot_ms[owner]).all()
    at = events.rows["time_ms"]
    assert (at % DAY_MS > latest_snapshot(START_MS + DAY_MS - 1) % DAY_MS).all()
    assert len(np.unique(events.rows["event_id"])) == len(at)


def test_behaviour_happens_inside_aggregation_windows(simulated: Simulated) -> None:
    """Users act between their requests, so that windows hold events which some exposures see."""
    requests, events = simulated.logs.requests, simulated.logs.events
    between = 0
    for user in np.unique(requests.user_id):
        asked = np.sort(requests.context["time_ms"][requests.user_id == user])
        acted = events.rows["time_ms"][events.user_id == user]
        between += int(((acted > asked[0]) & (acted < asked[-1])).sum())
    assert between > len(events.rows) / 4


def test_behaviour_today_moves_the_truth() -> None:
    """A click today raises its category's CTR for a while; an order lowers every CTR."""
    market = Marketplace(users=5, items=50, seed=1)
    traffic = Traffic(Past(market, START_MS))
    items, later = np.arange(50), START_MS + HOUR_MS

    def ctr(at_ms: int) -> np.ndarray:
        here = traffic.past.situation(0, at_ms, HOME)
        return market.probabilities(here, items, traffic.past.orders[0])[0]

    before = ctr(later)
    traffic.past.act(0, 7, CLICK, START_MS + 1)
    same = market.category == market.category[7]
    assert (ctr(later)[same] > before[same]).all()
    assert np.array_equal(ctr(later)[~same], before[~same])
    assert np.array_equal(ctr(START_MS + 1), ctr(START_MS))  # strictly earlier behaviour only
    traffic.past.act(0, 7, ORDER, START_MS + 2)
    assert (ctr(later)[~same] < before[~same]).all()


def test_bodies_and_stored_features_follow_the_schema() -> None:
    """A request's body, with the stored user and items, has every feature that a model reads."""
    traffic = Traffic(Past(Marketplace(users=9, items=60, seed=1), START_MS))
    asked = traffic.ask(4, START_MS + HOUR_MS, HOME, candidates=30)
    body = traffic.body(asked, item_features=True)
    columns = {"item_id": body["candidates"]["item_id"], **body["candidates"]["features"]}
    rows = rows_from_columns(SCHEMA.layouts["candidate"], columns, 30)
    assert len(set(body["candidates"]["item_id"])) == 30
    context = {name: [value] for name, value in body["context"].items()}
    rows_from_columns(SCHEMA.layouts["context"], context, 1)
    items, popularity = stored_items(traffic.past)
    carriers = SCHEMA.layouts["item"].record.names or ()
    for carrier in carriers:
        width = items[carrier].shape[1]
        assert np.array_equal(rows[carrier][:, :width], items[carrier][asked.items])
    assert len(popularity) == 60
    users = list(stored_users(traffic.past))
    assert [user.user_id for user in users] == traffic.market.user_id.tolist()
    assert all((user.lifelong["time_ms"] <= user.snapshot_ms).all() for user in users)


def test_logged_request_as_body(simulated: Simulated) -> None:
    """A logged request becomes a body with the very features that were logged."""
    requests = simulated.logs.requests
    body = rank_body(simulated.logs, 5)
    columns = {"item_id": body["candidates"]["item_id"], **body["candidates"]["features"]}
    rows = rows_from_columns(SCHEMA.layouts["candidate"], columns, len(columns["item_id"]))
    start = requests.candidate_counts[:5].sum()
    assert np.array_equal(rows, requests.candidates[start : start + len(rows)])
    assert body["timestamp"] == requests.context["time_ms"][5]


def test_needs_numpy_only() -> None:
    """The simulator imports where neither torch nor pyarrow is installed."""
    script = (
        "import sys; sys.modules.update(torch=None, pyarrow=None);"
        "import model_def.data.simulate, model_def.data.bodies"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)
