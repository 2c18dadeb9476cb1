"""Served requests become training logs without drift, however and whenever they are joined."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from model_def.batch import pack
from model_def.data.attribution import Label, Windows
from model_def.data.join import Joined, join, join_command
from model_def.data.logs import LogError, Logs
from model_def.data.parquet import read_logs, write_logs
from model_def.data.samples import select_requests, training_samples
from model_def.data.served_scores import read_served
from model_def.served import ServedRequest
from tests.model_def.log_examples import SCHEMA, random_logs
from tests.model_def.served_examples import (
    MINUTE_MS,
    World,
    random_world,
    write_labels,
    write_requests,
)

WINDOWS = Windows(
    click_ms=2 * MINUTE_MS, order_ms=4 * MINUTE_MS, skew_ms=MINUTE_MS, wait_ms=3 * MINUTE_MS
)
LATER = 10**9
worlds = st.builds(random_world, seed=st.integers(0, 10**6), requests=st.integers(1, 12))


def join_whole(root: Path, world: World, windows: Windows = WINDOWS) -> Joined:
    """Everything in one run, long after."""
    write_requests(root / "requests/requests-1.parquet", world.served)
    write_labels(root / "labels/labels-1.parquet", [label for _, label in world.labels])
    return join(root / "requests", root / "labels", root / "out", windows, LATER)


def one_by_one(log: Logs) -> dict[str, tuple[bytes, list[int], list[int], list[int]]]:
    """Of each request alone: the bytes of its training sample, its items, clicks and orders."""
    out = {}
    for i, request_id in enumerate(log.requests.request_id.tolist()):
        chosen = select_requests(log, np.arange(len(log.requests.request_id)) == i)
        (sample,) = training_samples(chosen)
        mine = chosen.requests
        out[request_id] = (
            sample.batch.buffer.tobytes(),
            mine.candidates["ids"][:, 0].tolist(),
            mine.click.tolist(),
            mine.order.tolist(),
        )
    return out


def shown_only(served: ServedRequest, items: list[int]) -> bytes:
    """What serving packs of a request with the candidates that were shown."""
    sample = served.sample
    kept = sample.candidates[np.isin(sample.candidates["ids"][:, 0], items)]
    count = np.array([len(kept)], np.int32)
    values = {**vars(sample), "candidates": kept, "context_candidates": count}
    return pack(SCHEMA, type(sample)(**values)).buffer.tobytes()


@given(world=worlds)
@settings(max_examples=20)
def test_a_joined_request_trains_on_the_bytes_it_was_served_on(
    tmp_path_factory: pytest.TempPathFactory, world: World
) -> None:
    """Byte-equal, though snapshots and events came late; of the candidates that were shown."""
    root = tmp_path_factory.mktemp("join")
    join_whole(root, world)
    if not (root / "out/schema.json").exists():
        return  # nothing was shown
    log, rejects = read_logs(root / "out")
    assert len(rejects) == 0
    served = {one.request_id: one for one in world.served}
    for request_id, (trained, items, _, _) in one_by_one(log).items():
        assert trained == shown_only(served[request_id], items)


def test_requests_share_a_history_unless_they_saw_different_ones(tmp_path: Path) -> None:
    """Several requests a sample: what makes training on a window cheap survives the join."""
    world = random_world(5, requests=40)
    join_whole(tmp_path, world)
    log, _ = read_logs(tmp_path / "out")
    histories = len(log.snapshots.user_id)
    assert 2 < histories < len(log.requests.request_id)
    assert len(list(training_samples(log))) < len(log.requests.request_id)


@given(world=worlds, steps=st.lists(st.integers(0, 9 * MINUTE_MS), max_size=6))
@settings(max_examples=12)
def test_run_after_run_joins_the_same_as_one_run(
    tmp_path_factory: pytest.TempPathFactory, world: World, steps: list[int]
) -> None:
    """Files appear as time goes by; each run adds what has closed, and running again nothing."""
    root = tmp_path_factory.mktemp("join")
    whole = join_whole(root / "whole", world)
    parts = root / "parts"
    now = min(one.time_ms for one in world.served)
    counts = Joined().counts
    for run, step in enumerate([*steps, LATER, 0]):
        before, now = now, now + step
        came = [one for one in world.served if before <= one.time_ms < now]
        write_requests(parts / f"requests/requests-{run}.parquet", came)
        fresh = [label for at, label in world.labels if (before if run else 0) <= at < now]
        write_labels(parts / f"labels/labels-{run}.parquet", fresh)
        done = join(parts / "requests", parts / "labels", parts / "out", WINDOWS, now)
        done.counts.pop("waiting", None)
        counts += done.counts
        if run == len(steps) + 1:
            assert not +done.counts
    whole.counts.pop("waiting", None)
    assert counts == +whole.counts
    if counts["requests"]:
        one, other = (read_logs(root / name / "out")[0] for name in ("whole", "parts"))
        assert one_by_one(one) == one_by_one(other)


def test_a_run_that_was_killed_before_its_end_runs_again(tmp_path: Path) -> None:
    """Its part is written anew: the state is replaced last. In the first run and in a later one."""
    world, out = random_world(2), tmp_path / "out"
    (tmp_path / "requests").mkdir()
    (tmp_path / "labels").mkdir()
    for run, some in enumerate((world.served[:6], world.served[6:])):
        arguments = tmp_path / "requests", tmp_path / "labels", out, WINDOWS, LATER
        join(*arguments)
        before = tmp_path / f"state-{run}"
        shutil.copytree(out / "join", before)
        write_requests(tmp_path / f"requests/requests-{run}.parquet", some)
        ids = {one.request_id for one in some}
        labels = [label for _, label in world.labels if label.request_id in ids]
        write_labels(tmp_path / f"labels/labels-{run}.parquet", labels)
        first = join(*arguments)
        expected = one_by_one(read_logs(out)[0])
        shutil.rmtree(out / "join")
        shutil.copytree(before, out / "join")
        assert join(*arguments).counts == first.counts
        assert one_by_one(read_logs(out)[0]) == expected
        assert first.counts["requests"] > 0


def test_logs_of_another_make_are_not_added_to(tmp_path: Path) -> None:
    """A directory with a log and no state of a join is refused."""
    write_logs(tmp_path / "out", random_logs(1))
    with pytest.raises(LogError, match="holds logs that 'mtgr join' did not make"):
        join_whole(tmp_path, random_world(2))


def joined_by(tmp_path: Path, *labels: tuple[str, int, str, int]) -> tuple[Joined, Logs]:
    """One request of time 0 in minutes, its first item i, and labels (item, minutes, ...)."""
    world = random_world(0, requests=1)
    one = world.served[0]
    item = int(one.sample.candidates["ids"][0, 0])
    world.labels = [
        (0, Label(one.time_ms + minutes * MINUTE_MS, request_id or one.request_id, item + off, a))  # type: ignore[arg-type] # an action
        for request_id, minutes, a, off in labels
    ]
    done = join_whole(tmp_path, world)
    return done, read_logs(tmp_path / "out")[0]


@pytest.mark.parametrize(
    ("labels", "click", "order", "counts"),
    [
        ([("exposure", 0)], 0, 0, {}),
        ([("exposure", 0), ("click", 2)], 1, 0, {}),
        ([("exposure", 0), ("click", 3)], 0, 0, {"late": 1}),
        ([("exposure", 5), ("click", 7)], 1, 0, {}),
        ([("exposure", 0), ("order", 4)], 1, 1, {}),
        ([("exposure", 0), ("order", 5)], 0, 0, {"late": 1}),
        ([("click", 1)], 1, 0, {}),
        ([("exposure", 1), ("click", 0)], 1, 0, {}),
        ([("exposure", 2), ("click", 0)], 0, 0, {"skewed": 1}),
        ([("exposure", 0), ("exposure", 1), ("click", 2), ("click", 2)], 1, 0, {"duplicate": 2}),
    ],
)
def test_an_outcome_counts_within_its_window_of_the_exposure(
    tmp_path: Path,
    labels: list[tuple[str, int]],
    click: int,
    order: int,
    counts: dict[str, int],
) -> None:
    """A click within two minutes, an order within four; clocks may be one minute apart."""
    done, log = joined_by(tmp_path, *[("", minutes, action, 0) for action, minutes in labels])
    assert (log.requests.click.tolist(), log.requests.order.tolist()) == ([click], [order])
    assert {k: done.counts[k] for k in ("late", "skewed", "duplicate", "orphan")} == {
        "late": 0,
        "skewed": 0,
        "duplicate": 0,
        "orphan": 0,
    } | counts


def test_labels_of_nothing_served_are_orphans(tmp_path: Path) -> None:
    """Another request, or an item that was no candidate."""
    done, log = joined_by(
        tmp_path, ("", 0, "exposure", 0), ("nobody", 0, "click", 0), ("", 1, "click", 1000)
    )
    assert done.counts["orphan"] == 2
    assert log.requests.click.tolist() == [0]


def test_a_label_that_comes_after_its_request_closed_is_late(tmp_path: Path) -> None:
    """The request stays as it was joined."""
    joined_by(tmp_path, ("", 0, "exposure", 0))
    (request_id,) = read_logs(tmp_path / "out")[0].requests.request_id.tolist()
    write_labels(tmp_path / "labels/labels-2.parquet", [Label(1, request_id, 1, "click")])
    done = join(tmp_path / "requests", tmp_path / "labels", tmp_path / "out", WINDOWS, LATER)
    assert +done.counts == {"late": 1}


def test_a_retried_request_and_a_file_there_twice_count_once(tmp_path: Path) -> None:
    """The answer that came last is the one that was shown; in this run and after it."""
    world = random_world(3, requests=6)
    later = [ServedRequest(**{**vars(one), "model_version": "v2"}) for one in world.served]
    write_requests(tmp_path / "requests/requests-2.parquet", later)
    assert join_whole(tmp_path, world).counts["requests repeated"] == 6
    write_requests(tmp_path / "requests/requests-3.parquet", world.served)
    again = join(tmp_path / "requests", tmp_path / "labels", tmp_path / "out", WINDOWS, LATER)
    assert (again.counts["requests"], again.counts["requests repeated"]) == (0, 6)


def test_what_was_served_stands_beside_each_exposure(tmp_path: Path) -> None:
    """Scores by task, as served, in the order in which the logs are read; a file that a killed
    run left half-written is no part of it."""
    world = random_world(4)
    join_whole(tmp_path, world)
    (tmp_path / "out/served.parquet/part-000002.partial").write_bytes(b"torn")
    log, _ = read_logs(tmp_path / "out")
    scores = read_served(tmp_path / "out", log)
    assert scores is not None
    served = {one.request_id: one for one in world.served}
    owner = np.repeat(log.requests.request_id, log.requests.candidate_counts)
    items = log.requests.candidates["ids"][:, 0]
    for i, (request_id, item) in enumerate(zip(owner.tolist(), items.tolist(), strict=True)):
        one = served[request_id]
        place = one.sample.candidates["ids"][:, 0].tolist().index(item)
        assert scores.tasks["ctr"][i] == one.tasks["ctr"][place] == scores.score[i]
    assert set(scores.model_version.tolist()) == {"v1"}


def spoil(path: Path, change: Any) -> None:
    """Rewrite a Parquet file."""
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def test_bad_files_and_rows_are_set_aside_with_their_reason(tmp_path: Path) -> None:
    """Everything that is good is joined; the rest is listed by file, row and reason."""
    world = random_world(6, requests=8)
    requests, labels = tmp_path / "requests", tmp_path / "labels"
    for name in "abc":
        write_requests(requests / f"requests-{name}.parquet", world.served[:2])
    spoil(requests / "requests-a.parquet", lambda t: t.drop_columns("score"))
    spoil(requests / "requests-b.parquet", lambda t: t.replace_schema_metadata({}))
    (requests / "requests-c.parquet").write_bytes(b"torn")
    write_requests(requests / "requests-d.parquet", world.served)

    def damage(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[3]["realtime"] = b"odd"
        rows[5]["snapshot_ms"] = rows[5]["time_ms"] + 1
        return pa.Table.from_pylist(rows, table.schema)

    spoil(requests / "requests-d.parquet", damage)
    good = [label for _, label in world.labels]
    write_labels(labels / "a.parquet", good)
    write_labels(labels / "b.parquet", [Label(LATER * 2, "r", 1, "click")])
    write_labels(labels / "c.parquet", [Label(1, "r", 1, "view")])  # type: ignore[arg-type] # bad
    write_labels(labels / "d.parquet", good[:1])
    spoil(labels / "d.parquet", lambda t: t.drop_columns("item_id"))

    arguments = [str(requests), str(labels), str(tmp_path / "out"), "--now-ms", str(LATER)]
    result = CliRunner().invoke(join_command, arguments)
    assert result.exit_code == 0, result.output
    (listed,) = (tmp_path / "out/join").glob("rejects-*.csv")
    lines = listed.read_text().splitlines()[1:]
    for expected in (
        "requests-a.parquet,-1,column 'score' is missing",
        "requests-b.parquet,-1,holds no feature schema",
        "requests-c.parquet,-1,not a Parquet file",
        "requests-d.parquet,3,not a request: realtime: 3 bytes are no rows of",
        "requests-d.parquet,5,time_ms: before the user's snapshot; check the clocks",
        "b.parquet,0,time_ms: in the future; check the sender's clock",
        'c.parquet,0,"action: expected one of exposure, click, order"',
        f"d.parquet,-1,{labels / 'd.parquet'}: column 'item_id' is missing",
    ):
        assert [line for line in lines if line.startswith(expected)], (expected, lines)
    assert len(lines) == 8
    kept = set(read_logs(tmp_path / "out")[0].requests.request_id.tolist())
    assert kept == {label.request_id for label in good} - {"request 3", "request 5"}


def test_a_log_of_another_schema_is_left_to_a_directory_of_its_own(tmp_path: Path) -> None:
    """Named with both layouts; what fits is joined."""
    world = random_world(1)
    write_requests(tmp_path / "requests/requests-0.parquet", world.served)
    other = SCHEMA.model_copy(update={"name": "other", "cross": ()})

    def rename(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata({b"mtgr.schema": other.model_dump_json().encode()})

    spoil(tmp_path / "requests/requests-0.parquet", rename)
    done = join_whole(tmp_path, world)
    ((file, reason),) = done.rejects.counts
    assert file == "requests-0.parquet"
    assert "of schema 'other'" in reason
    assert done.counts["requests"] > 0
