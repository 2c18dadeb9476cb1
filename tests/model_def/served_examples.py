"""A small world that serves: features arrive in any order, requests see what is there."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_def.batch import Rows, Sample
from model_def.data.attribution import Label
from model_def.rows import empty_rows, rows_from_columns
from model_def.served import ServedRequest, to_record
from service.request_log import write_file
from tests.model_def.log_examples import SCHEMA

LAYOUTS = SCHEMA.layouts
MINUTE_MS = 60_000


def behaviour(segment: str, rng: np.random.Generator, stamps: dict[str, Any]) -> Rows:
    """Random behaviour at the times of `stamps`."""
    count = len(stamps["time_ms"])
    columns = {"item_id": rng.integers(0, 50, count), "action": rng.integers(0, 3, count)}
    return rows_from_columns(LAYOUTS[segment], columns, count, stamps)


@dataclass
class User:
    """What the store holds of a user."""

    snapshot_ms: int | None = None
    profile: Rows = field(default_factory=lambda: empty_rows(LAYOUTS["profile"], 1))
    lifelong: Rows = field(default_factory=lambda: empty_rows(LAYOUTS["lifelong"]))
    realtime: Rows = field(default_factory=lambda: empty_rows(LAYOUTS["realtime"]))


@dataclass
class World:
    """Requests as they were served, and the labels that came, with the times they came at."""

    served: list[ServedRequest] = field(default_factory=list)
    labels: list[tuple[int, Label]] = field(default_factory=list)


def random_world(seed: int, requests: int = 12, users: int = 2) -> World:
    """Snapshots and events that come late, several requests at one time, labels of all kinds."""
    rng = np.random.default_rng(seed)
    world, stores = World(), [User() for _ in range(users)]
    now, events = 10 * MINUTE_MS, 0
    while len(world.served) < requests:
        now += int(rng.choice([0, 0, 1, 500, 20_000]))
        user = int(rng.integers(users))
        store = stores[user]
        at = now - int(rng.choice([0, 1, 500, 3 * MINUTE_MS]))
        match rng.choice(["snapshot", "event", "event", "event", "request", "request"]):
            case "snapshot":
                store.snapshot_ms = at
                columns = {"age": rng.integers(0, 8, 1), "spend": rng.random(1)}
                store.profile = rows_from_columns(LAYOUTS["profile"], columns, 1)
                times = np.sort(rng.integers(0, at, rng.integers(0, 9)))
                store.lifelong = behaviour("lifelong", rng, {"time_ms": times})
            case "event":
                events += 1
                stamps = {"time_ms": [at], "event_id": [int(rng.integers(1 << 40)) - events]}
                one = behaviour("realtime", rng, stamps)
                store.realtime = np.concatenate([store.realtime, one])
            case "request":
                served = serve(rng, f"request {len(world.served)}", f"user {user}", store, now)
                world.served.append(served)
                world.labels += random_labels(rng, served)
    return world


def serve(
    rng: np.random.Generator, request_id: str, user_id: str, store: User, now: int
) -> ServedRequest:
    """A request of random candidates on what the store holds."""
    first = int(store.realtime["time_ms"].min()) - 1 if len(store.realtime) else now
    count = int(rng.integers(1, 6))
    columns = {
        "item_id": rng.permutation(50)[:count],
        "price": rng.random(count),
        "distance": rng.random(count),
    }
    ctr = rng.random(count).astype(np.float32)
    return ServedRequest(
        request_id=request_id,
        user_id=user_id,
        scene="home",
        model_version="v1",
        sample=Sample(
            snapshot_ms=min(first, now) if store.snapshot_ms is None else store.snapshot_ms,
            profile=store.profile,
            lifelong=store.lifelong,
            realtime=store.realtime,
            context=rows_from_columns(
                LAYOUTS["context"], {"hour": rng.integers(0, 24, 1)}, 1, {"time_ms": [now]}
            ),
            candidates=rows_from_columns(LAYOUTS["candidate"], columns, count),
            context_candidates=np.array([count], np.int32),
        ),
        ranked_by="model",
        reason=None,
        answered=np.argsort(-ctr)[:3],
        scores=ctr,
        tasks={"ctr": ctr, "ctcvr": ctr / 2},
    )


def random_labels(rng: np.random.Generator, served: ServedRequest) -> list[tuple[int, Label]]:
    """Exposures of most candidates, clicks and orders of some, minutes later; they come later
    still."""
    out = []
    for item in served.sample.candidates["ids"][:, 0].tolist():
        at = served.time_ms
        for action, share in (("exposure", 0.8), ("click", 0.5), ("order", 0.5)):
            if rng.random() > share:
                break
            at += int(rng.integers(0, 3 * MINUTE_MS))
            label = Label(at, served.request_id, item, action)  # type: ignore[arg-type] # an action
            out.append((at + int(rng.integers(0, 2 * MINUTE_MS)), label))
    return out


def write_requests(path: Path, served: Iterable[ServedRequest]) -> None:
    """One file of a request log."""
    write_file(path.parent, path.name, SCHEMA, [to_record(SCHEMA, one) for one in served])


def write_labels(path: Path, labels: Iterable[Label]) -> None:
    """One file of labels, as `service.labels` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [label._asdict() for label in labels]
    kinds = {"time_ms": pa.int64(), "request_id": pa.string(), "item_id": pa.int64()}
    columns = pa.schema([*kinds.items(), ("action", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, columns), path)
