"""Realistic traffic: who asks, how often, for how many candidates, in which format, how wrongly.

A few users ask often (Zipf) and some were never seen; requests come in sessions of one user, with
behaviour events between them; candidate counts have a long tail; a share of requests is bad.
Sessions are drawn and encoded once, from a seed, and replayed in a cycle: encoding while sending
would make the generator the bottleneck.
"""

from dataclasses import asdict, dataclass
from itertools import count
from time import time
from typing import Any

import msgspec
import numpy as np

from loadtest.material import Material
from loadtest.mistakes import bad_request
from loadtest.request import FORMATS, JSON, Format, Request, rank_body


@dataclass(frozen=True)
class Mix:
    """How traffic is mixed. Shares are of all requests, in 0..1."""

    json_rows: float = 0.2
    """Share of rank requests; likewise the next one. The rest is MessagePack."""
    json_columns: float = 0.3
    bad: float = 0.02
    events: float = 0.1
    cold_users: float = 0.05
    """Share of sessions by a user whom the service does not know."""
    zipf: float = 1.05
    """Exponent: the n-th user asks in proportion to n^-zipf."""
    session_requests: float = 2.5
    """Mean length of a session, in requests (geometric)."""
    candidates_median: float = 120
    candidates_sigma: float = 0.9
    """Of the logarithm of the candidate count (log-normal)."""
    candidates_max: int = 500
    top_k: int = 50
    deadline_ms: int = 200

    def __post_init__(self) -> None:
        shares = ("json_rows", "json_columns", "bad", "events", "cold_users")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in 0..1, got {getattr(self, name)}")
        for first, second in (("json_rows", "json_columns"), ("bad", "events")):
            if getattr(self, first) + getattr(self, second) > 1:
                raise ValueError(f"{first} + {second}: expected at most 1")
        for name in ("session_requests", "candidates_median", "candidates_max", "top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("zipf", "candidates_sigma", "deadline_ms"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")


class Traffic:
    """An endless, reproducible supply of sessions."""

    def __init__(self, material: Material, mix: Mix, seed: int = 0, sessions: int = 256):
        """`sessions` are drawn and kept in memory, some 100 KB each with the default mix."""
        self.mix = mix
        self._material = material
        self._rng = np.random.default_rng(seed)
        self._mistakes = count()
        self._event_numbers = count()
        self._run = f"{time():.6f}"
        weights = np.arange(1, len(material.users) + 1) ** -mix.zipf
        self._popularity = weights / weights.sum()
        self._sessions = [self._session(number) for number in range(sessions)]

    def request(self, session: int, turn: int) -> Request:
        """Request `turn` of session `session`; both may grow without end."""
        requests = self._sessions[session % len(self._sessions)]
        request = requests[turn % len(requests)]
        return self._event(request) if isinstance(request, str) else request

    def turns(self, session: int) -> int:
        """How many requests session `session` was drawn with."""
        return len(self._sessions[session % len(self._sessions)])

    def describe(self) -> dict[str, Any]:
        """The mix, for a report."""
        return asdict(self.mix)

    def _session(self, number: int) -> list[Request | str]:
        """Requests; a bare user id stands for an event, which is made when it is sent."""
        rng, mix = self._rng, self.mix
        user = self._material.users[rng.choice(len(self._popularity), p=self._popularity)]
        if rng.random() < mix.cold_users:
            user = f"cold-{number}"
        session: list[Request | str] = []
        for turn in range(int(rng.geometric(1 / mix.session_requests))):
            draw = rng.random()
            if draw < mix.bad:
                session.append(self._bad(user))
            elif draw < mix.bad + mix.events and self._material.events:
                session.append(user)
            else:
                session.append(self._rank(user, f"load-{number}-{turn}"))
        return session

    def _rank(self, user: str, request_id: str) -> Request:
        mix = self.mix
        rows, columns = mix.json_rows, mix.json_columns
        kinds = (rows, columns, max(0.0, 1 - rows - columns))
        format = FORMATS[self._rng.choice(len(FORMATS), p=kinds)]
        size = self._rng.lognormal(np.log(mix.candidates_median), mix.candidates_sigma)
        media, body, items = self._body(
            user, request_id, min(int(size) + 1, mix.candidates_max), format
        )
        return Request(
            kind=f"rank {format}",
            path="/v1/rank",
            content_type=media,
            body=body,
            deadline_ms=mix.deadline_ms,
            request_id=request_id,
            items=min(items, mix.top_k),
        )

    def _bad(self, user: str) -> Request:
        _, good, _ = self._body(user, "load-bad", 8, "json-rows")
        return bad_request(good, next(self._mistakes))

    def _body(
        self, user: str, request_id: str, items: int, format: Format
    ) -> tuple[str, bytes, int]:
        """Media type, bytes, and how many candidates they hold."""
        rng, material = self._rng, self._material
        known = len(material.candidates.item_id)
        items = min(items, known)
        head = {
            "request_id": request_id,
            "user_id": user,
            "deadline_ms": self.mix.deadline_ms,
            "top_k": self.mix.top_k,
            **material.heads[rng.integers(len(material.heads))],
        }
        chosen = rng.choice(known, items, replace=False)
        return *rank_body(head, material.candidates.take(chosen), format), items

    def _event(self, user: str) -> Request:
        """Behaviour of now, with an id of its own: a repeated one would be left out."""
        number = next(self._event_numbers)
        event = {
            "event_id": f"load-{self._run}-{number}",
            "timestamp": int(time() * 1000),
            "features": self._material.events[number % len(self._material.events)],
        }
        scene = self._material.heads[0].get("scene")
        body = {"user_id": user, "events": [event], **({"scene": scene} if scene else {})}
        return Request("events", "/v1/events", JSON, msgspec.json.encode(body))
