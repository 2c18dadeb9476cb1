"""The simulated marketplace as callers of the gateway, over HTTP: its recall, its apps, its users.

Users, requests and behaviour are the simulator's; ranking is the gateway's. What the true
probabilities say of each answer is kept: the regret of the ranking.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from time import sleep
from typing import Any

import httpx
import numpy as np

from model_def.data.simulator import ORDER, SCHEMA, Ints
from model_def.data.traffic import SCENE, Asked, Traffic
from model_def.rows import columns_from_rows
from service.rank import best

BUSY = httpx.codes.TOO_MANY_REQUESTS
PATIENCE_MS = 10_000
"""Deadline of a request: the loop measures learning, not latency."""


@dataclass
class Tally:
    """Expected orders of the items that rankings put first, summed over requests."""

    requests: int = 0
    degraded: int = 0
    refused: int = 0
    served: float = 0.0
    best: float = 0.0
    recall: float = 0.0
    random: float = 0.0

    @property
    def regret(self) -> float:
        """Expected orders that the best ranking has more, of a hundred requests."""
        return 100 * (self.best - self.served) / self.requests

    def of_best(self, orders: float) -> float:
        """Share of the best ranking's orders."""
        return orders / self.best


@dataclass
class Crowd:
    """Everybody who calls the gateway."""

    client: httpx.Client
    traffic: Traffic
    candidates: int
    top_k: int
    explore: int
    """Places of those shown that random candidates take, to learn of what is ranked low."""
    rng: np.random.Generator
    tally: Tally = field(default_factory=Tally)

    def day(self, day_ms: int) -> None:
        """Users as of this morning, then every session of the day."""
        sessions = self.traffic.sessions(day_ms)
        for user in sorted({user for _, user in sessions}):
            self._put_user(user)
        for start_ms, user in sessions:
            self._session(user, start_ms)

    def _put_user(self, user: int) -> None:
        past, layouts = self.traffic.past, SCHEMA.layouts
        profile = columns_from_rows(layouts["profile"], past.profile_rows(user))
        lifelong = past.lifelong_rows(user)
        columns = columns_from_rows(layouts["lifelong"], lifelong)
        body = {
            "snapshot_ms": past.snapshot_ms,
            "profile": {name: column[0].item() for name, column in profile.items()},
            "lifelong": {
                "timestamp": lifelong["time_ms"].tolist(),
                "features": {name: column.tolist() for name, column in columns.items()},
            },
        }
        self._send("PUT", f"/v1/users/{self._name(user)}", body)

    def _session(self, user: int, start_ms: int) -> None:
        shown: list[Ints] = []

        def show(asked: Asked) -> Ints:
            shown.append(self._show(asked))
            return shown[-1]

        log = self.traffic.past.today[user]
        known = len(log.item)
        for asked, _ in self.traffic.session(user, start_ms, self.candidates, show):
            events = [*self._exposures(asked, shown[-1]), *self._behaviour(asked, known)]
            known = len(log.item)
            body = {"user_id": self._name(user), "events": events}
            self._send("POST", "/v1/events", body)

    def _show(self, asked: Asked) -> Ints:
        """Rank, and give the last places to random candidates that were not answered."""
        body = self.traffic.body(asked, item_features=True)
        body |= {"top_k": self.top_k, "deadline_ms": PATIENCE_MS}
        answer = self._send("POST", "/v1/rank", body)
        ids = self.traffic.market.item_id[asked.items].tolist()
        places = {item_id: place for place, item_id in enumerate(ids)}
        answered = np.array([places[item["item_id"]] for item in answer["items"]])
        self._count(asked, answered, answer["degraded"])
        others = np.setdiff1d(np.arange(len(ids)), answered)
        kept = answered[: len(answered) - min(self.explore, len(others))]
        explored = self.rng.choice(others, len(answered) - len(kept), replace=False)
        return np.concatenate([kept, explored])

    def _count(self, asked: Asked, answered: Ints, degraded: bool) -> None:
        orders, tally = self.traffic.truth(asked)[1], self.tally
        tally.requests += 1
        tally.degraded += degraded
        tally.served += orders[answered].sum()
        tally.best += np.sort(orders)[-len(answered) :].sum()
        tally.recall += orders[best(asked.recall_score, len(answered))].sum()
        tally.random += orders.mean() * len(answered)

    def _exposures(self, asked: Asked, shown: Ints) -> Iterator[dict[str, Any]]:
        for place in shown.tolist():
            item_id = int(self.traffic.market.item_id[asked.items[place]])
            label = {"request_id": asked.request_id, "item_id": item_id, "action": "exposure"}
            yield {
                "event_id": f"{asked.request_id}/{item_id}",
                "timestamp": asked.situation.at_ms,
                "label": label,
            }

    def _behaviour(self, asked: Asked, known: int) -> Iterator[dict[str, Any]]:
        """What the user did after this request: behaviour, and labels of it."""
        user = asked.situation.user
        rows = self.traffic.past.realtime_rows(user)[known:]
        columns = columns_from_rows(SCHEMA.layouts["realtime"], rows)
        for i, row in enumerate(rows):
            features = {name: column[i].item() for name, column in columns.items()}
            action = "order" if features["action"] == ORDER else "click"
            yield {
                "event_id": str(row["event_id"]),
                "timestamp": int(row["time_ms"]),
                "features": features,
                "label": {
                    "request_id": asked.request_id,
                    "item_id": features["item_id"],
                    "action": action,
                },
            }

    def _name(self, user: int) -> str:
        return str(self.traffic.market.user_id[user])

    def _send(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """The answer; a refused caller comes back when it was told to."""
        body |= {"scene": SCENE}
        while (response := self.client.request(method, path, json=body)).status_code == BUSY:
            self.tally.refused += 1
            sleep(int(response.headers["retry-after"]))
        return response.raise_for_status().json()
