"""Logs of the simulated marketplace: days of sessions, and the truth behind their labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_def.batch import Rows
from model_def.data.logs import Events, Logs, Requests, Snapshots
from model_def.data.past import Past
from model_def.data.simulator import DAY_MS, SCHEMA, Floats, Marketplace
from model_def.data.traffic import SCENE, Asked, Reaction, Traffic, context_of, latest_snapshot
from model_def.rows import rows_from_columns


@dataclass(frozen=True)
class Simulated:
    """Logs, and the true CTR and CTCVR [N, 2] of their exposures, in their order."""

    logs: Logs
    truth: Floats


def simulate(
    market: Marketplace,
    start_ms: int,
    days: int,
    candidates: int = 24,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Simulated:
    """Logs of whole days from the first snapshot at or after `start_ms`.

    `progress(day, days)` is called after each.
    """
    first_ms = latest_snapshot(start_ms + DAY_MS - 1)
    past = Past(market, first_ms, seed)
    traffic = Traffic(past, seed)
    log = _Recorder(past)
    for day in range(days):
        day_ms = first_ms + day * DAY_MS
        if day:
            past.snapshot(day_ms)
        for session_ms, user in traffic.sessions(day_ms):
            log.snapshot(user)
            for asked, reaction in traffic.session(user, session_ms, candidates):
                log.request(asked, reaction)
        log.events()
        if progress:
            progress(day + 1, days)
    return log.simulated()


class _Recorder:
    """Collects what happens in parts, and joins them once."""

    def __init__(self, past: Past):
        self._past, self._market = past, past.market
        self._snapshots: list[tuple[int, int, Rows, Rows]] = []
        self._taken: set[tuple[int, int]] = set()
        self._events: list[tuple[int, Rows]] = []
        self._asked: list[Asked] = []
        self._columns: list[dict[str, Any]] = []
        self._reactions: list[Reaction] = []

    def snapshot(self, user: int) -> None:
        """Keep a user's snapshot of today, once."""
        past = self._past
        if (user, past.snapshot_ms) not in self._taken:
            self._taken.add((user, past.snapshot_ms))
            rows = past.profile_rows(user), past.lifelong_rows(user)[-SCHEMA.lifelong_cap :]
            self._snapshots.append((user, past.snapshot_ms, *rows))

    def request(self, asked: Asked, reaction: Reaction) -> None:
        """Keep a request, all of its candidates shown."""
        self._asked.append(asked)
        columns = self._past.cross(asked.situation, asked.items)
        self._columns.append(columns | self._past.item_columns(asked.items))
        self._reactions.append(reaction)

    def events(self) -> None:
        """Keep today's behaviour."""
        for user, log in enumerate(self._past.today):
            if log.item:
                self._events.append((user, self._past.realtime_rows(user)))

    def simulated(self) -> Simulated:
        names, layouts = self._market.user_id, SCHEMA.layouts
        users, at_ms, profiles, lifelong = zip(*self._snapshots, strict=True)
        snapshots = Snapshots(
            names[list(users)],
            np.array(at_ms),
            np.concatenate(profiles),
            np.concatenate(lifelong),
            np.array([len(rows) for rows in lifelong], np.int32),
        )
        owners = np.repeat([u for u, _ in self._events], [len(rows) for _, rows in self._events])
        events = Events(names[owners], np.concatenate([rows for _, rows in self._events]))
        asked = self._asked
        counts = np.array([len(a.items) for a in asked], np.int32)
        contexts = [context_of(a.situation) for a in asked]
        requests = Requests(
            np.array([a.request_id for a in asked]),
            names[[a.situation.user for a in asked]],
            np.full(len(asked), SCENE),
            rows_from_columns(
                layouts["context"],
                {name: [c[name] for c in contexts] for name in contexts[0]},
                len(asked),
                {"time_ms": [a.situation.at_ms for a in asked]},
            ),
            rows_from_columns(
                layouts["candidate"],
                {
                    name: np.concatenate([c[name] for c in self._columns])
                    for name in self._columns[0]
                },
                int(counts.sum()),
            ),
            counts,
            np.concatenate([r.click for r in self._reactions]),
            np.concatenate([r.order for r in self._reactions]),
        )
        truth = np.concatenate([np.stack((r.ctr, r.ctcvr), 1) for r in self._reactions])
        return Simulated(Logs(SCHEMA, snapshots, events, requests), truth)
