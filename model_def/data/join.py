"""`mtgr join`: the request log and the labels -> training logs, run after run.

Each run adds what has closed since the last: a request closes once its windows have passed, and
then every label that may still change it has been read. Labels wait until their request closes; a
file of requests is read again while some of them are open; running again adds nothing twice.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import cast

import click
import numpy as np

from model_def.data.attribution import ACTIONS, Action, Label, Outcome, Windows, attribute
from model_def.data.histories import logs_of
from model_def.data.join_state import State, StateStore, part_name
from model_def.data.logs import LogError
from model_def.data.parquet import LogWriter, read_schema
from model_def.data.rejects import WHOLE_FILE, Rejects
from model_def.data.request_log import LogFile, log_files, open_log_file
from model_def.data.served_scores import SERVED, write_served
from model_def.data.table import Table
from model_def.schema import FeatureSchema
from model_def.served import ServedRequest


@dataclass
class Joined:
    """What a run did: counts by name, and the rows that it set aside."""

    counts: Counter[str] = field(default_factory=Counter)
    rejects: Rejects = field(default_factory=Rejects)


def join(requests: Path, labels: Path, out: Path, windows: Windows, now_ms: int) -> Joined:
    """Add to the logs `out` what has closed by `now_ms`; raises LogError.

    `requests` holds the files of a request log (`model_def.served`), `labels` those of
    `service.labels`.
    """
    done, store = Joined(), StateStore(out)
    state, waiting = store.read()
    closed_ms = windows.closed_before(now_ms)
    schema = read_schema(out) if state.parts else None
    schema, files, served = _closing(requests, schema, state, closed_ms, done.rejects)
    fresh, label_files = _new_labels(labels, state, now_ms + windows.skew_ms, done.rejects)
    of_request: dict[str, list[Label]] = defaultdict(list)
    for label in (*waiting, *fresh):
        of_request[label.request_id].append(label)

    served = _once(served, store, state.parts, done)
    kept: list[ServedRequest] = []
    outcomes: list[Outcome] = []
    for one in served:
        assert schema is not None  # what was read has one
        item_ids = one.sample.candidates["ids"][:, schema.item_place]
        mine = of_request.pop(one.request_id, [])
        outcome = attribute(one.time_ms, item_ids, mine, windows, done.counts)
        if outcome.shown.any():
            kept.append(one)
            outcomes.append(outcome)
        else:
            done.counts["requests not shown"] += 1
    part = state.parts + bool(kept)
    if kept:
        assert schema is not None
        _write_part(out, schema, kept, outcomes, part)
        done.counts["requests"] += len(kept)
    past = {
        request_id
        for request_id, labels in of_request.items()
        if all(label.time_ms < closed_ms - windows.skew_ms for label in labels)
    }
    joined = store.joined(sorted(past), part)
    waiting = []
    for request_id, mine in of_request.items():
        if request_id in past:  # its request has closed, or never was
            done.counts["late" if request_id in joined else "orphan"] += len(mine)
        else:
            waiting += mine
    done.counts["waiting"] += len(waiting)
    if len(done.rejects):
        done.rejects.write(store.rejects(state.runs + 1))
    store.write(
        State(runs=state.runs + 1, parts=part, request_files=files, label_files=label_files),
        waiting,
    )
    return done


def _closing(
    directory: Path, schema: FeatureSchema | None, state: State, closed_ms: int, rejects: Rejects
) -> tuple[FeatureSchema | None, dict[str, int | None], list[ServedRequest]]:
    """The schema of the logs (given, or that of the newest file), how far each file is joined,
    and the requests that have closed since the last run."""
    files: dict[str, int | None] = {}
    served: list[ServedRequest] = []
    for name in reversed(log_files(directory)):
        since_ms = state.request_files.get(name, 0)
        files[name] = None
        if since_ms is None:
            continue
        file = open_log_file(directory, name, rejects)
        if file is None or not _fits(file, schema, rejects):
            continue
        schema = schema or file.schema
        times = file.times
        closing = np.flatnonzero((times >= since_ms) & (times < closed_ms))
        served += _plausible(file, closing, rejects)
        if (times >= closed_ms).any():
            files[name] = max(closed_ms, since_ms)
    return schema, files, served


def _fits(file: LogFile, schema: FeatureSchema | None, rejects: Rejects) -> bool:
    theirs = file.schema
    if schema is None or schema.layout_hash == theirs.layout_hash:
        return True
    reason = (
        f"of schema {theirs.name!r}, layout {theirs.layout_hash:016x}; joined are "
        f"{schema.name!r}, {schema.layout_hash:016x}: join them into a directory of their own"
    )
    rejects.add(file.name, reason, np.array([WHOLE_FILE]))
    return False


def _plausible(file: LogFile, rows: np.ndarray, rejects: Rejects) -> list[ServedRequest]:
    """Requests in these rows; one of a time before its user's snapshot saw a clock go wrong."""
    snapshots = np.asarray(file.table["snapshot_ms"].fill_null(0), np.int64)
    early = file.times[rows] < snapshots[rows]
    rejects.add(file.name, "time_ms: before the user's snapshot; check the clocks", rows[early])
    return list(file.requests(rows[~early], rejects))


def _once(
    served: list[ServedRequest], store: StateStore, parts: int, done: Joined
) -> list[ServedRequest]:
    """Each request once, as it was served last: a caller may retry, a file may be there twice."""
    last: dict[str, ServedRequest] = {}
    for one in sorted(served, key=lambda one: one.time_ms):
        last[one.request_id] = one
    for request_id in store.joined(list(last), parts):
        del last[request_id]
    done.counts["requests repeated"] += len(served) - len(last)
    return list(last.values())


def _new_labels(
    directory: Path, state: State, latest_ms: int, rejects: Rejects
) -> tuple[list[Label], tuple[str, ...]]:
    """Labels of the files not read yet, and the names of all files."""
    if not directory.is_dir():
        raise LogError(f"{directory}: no such directory; expected files of labels")
    paths = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*.parquet")}
    labels: list[Label] = []
    for name in sorted(paths.keys() - set(state.label_files)):
        try:
            labels += _labels(Table(paths[name], rejects), latest_ms)
        except LogError as error:
            rejects.add(name, str(error), np.array([WHOLE_FILE]))
    return labels, tuple(sorted(paths))


def _labels(table: Table, latest_ms: int) -> list[Label]:
    request, requests = table.strings("request_id")
    items, at = table.integers("item_id"), table.times("time_ms")
    action, actions = table.strings("action")
    known = np.isin(actions, ACTIONS)
    table.reject(np.flatnonzero(~known[action]), f"action: expected one of {', '.join(ACTIONS)}")
    future = np.flatnonzero(at > latest_ms)
    table.reject(future, "time_ms: in the future; check the sender's clock")
    rows = np.flatnonzero(table.good)
    names = cast(list[Action], actions[action[rows]].tolist())
    columns = (at[rows].tolist(), requests[request[rows]].tolist(), items[rows].tolist(), names)
    return [Label(*values) for values in zip(*columns, strict=True)]


def _write_part(
    out: Path,
    schema: FeatureSchema,
    served: Sequence[ServedRequest],
    outcomes: Sequence[Outcome],
    part: int,
) -> None:
    """Exposures come last: a reader meanwhile finds what each of them needs."""
    name = part_name(part)
    write_served(out / SERVED / f"{name}.parquet", served, outcomes, schema)
    logs = logs_of(schema, served, outcomes, part)
    with LogWriter(out, schema, name) as writer:
        for table in (logs.snapshots, logs.events, logs.requests):
            writer.write(table)


@click.command("join")
@click.argument("requests", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("labels", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--click-minutes", type=float, default=30, show_default=True, help="window of clicks")
@click.option("--order-hours", type=float, default=24, show_default=True, help="window of orders")
@click.option("--skew-seconds", type=float, default=300, show_default=True, help="of clocks")
@click.option(
    "--wait-minutes",
    type=float,
    default=15,
    show_default=True,
    help="for files to arrive once the windows have passed",
)
@click.option("--now-ms", type=int, help="the time, milliseconds since 1970  [the clock's]")
def join_command(
    requests: Path,
    labels: Path,
    out: Path,
    click_minutes: float,
    order_hours: float,
    skew_seconds: float,
    wait_minutes: float,
    now_ms: int | None,
) -> None:
    """Make training logs OUT of the request log REQUESTS and the LABELS of 'mtgr labels'.

    Both windows begin at the exposure. Run it again to add what has closed since; a request closes
    once its windows have passed, so the request log must be kept longer than that.
    """
    windows = Windows(
        click_ms=round(click_minutes * 60_000),
        order_ms=round(order_hours * 3_600_000),
        skew_ms=round(skew_seconds * 1000),
        wait_ms=round(wait_minutes * 60_000),
    )
    now_ms = int(time() * 1000) if now_ms is None else now_ms
    try:
        done = join(requests, labels, out, windows, now_ms)
    except LogError as error:
        raise click.ClickException(str(error)) from None
    for (file, reason), rows in done.rejects.counts.most_common():
        click.echo(f"set aside {rows:,} of {file}: {reason}", err=True)
    counts = done.counts
    click.echo(
        f"{out}: {counts['requests']:,} requests with {counts['exposure']:,} exposures, "
        f"{counts['click']:,} clicks, {counts['order']:,} orders; requests not shown "
        f"{counts['requests not shown']:,}, repeated {counts['requests repeated']:,}"
    )
    unused = ", ".join(f"{counts[w]:,} {w}" for w in ("late", "duplicate", "orphan", "skewed"))
    until = datetime.fromtimestamp(windows.closed_before(now_ms) / 1000, UTC)
    click.echo(f"labels: {unused}, {counts['waiting']:,} waiting; closed before {until:%F %T}")
    if counts["requests"] and not counts["click"]:
        click.echo("no click at all: nothing can be learnt from these requests", err=True)
