"""Requests that callers get wrong, each with the status that the API promises for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtest.request import JSON, Request

FAR_AHEAD_MS = 4_000_000_000_000
"""Year 2096: no clock is that fast."""


@dataclass(frozen=True)
class Mistake:
    """What was done to a good body, and what it deserves."""

    name: str
    spoil: Callable[[dict[str, Any]], None]
    status: int = 422


def _duplicate(body: dict[str, Any]) -> None:
    body["candidates"].append(body["candidates"][0])


MISTAKES = (
    Mistake("no user", lambda body: body.pop("user_id")),
    Mistake("unknown field", lambda body: body.update(userid="u1")),
    Mistake("wrong type", lambda body: body.update(top_k="fifty")),
    Mistake("top_k zero", lambda body: body.update(top_k=0)),
    Mistake("no candidates", lambda body: body.update(candidates=[])),
    Mistake("item without id", lambda body: body["candidates"][0].pop("item_id")),
    Mistake("item twice", _duplicate),
    Mistake("future timestamp", lambda body: body.update(timestamp=FAR_AHEAD_MS)),
)
"""Of the document's content; three more below are of the bytes and headers around it."""

KINDS = len(MISTAKES) + 3


def bad_request(good: bytes, number: int) -> Request:
    """Mistake `number` (modulo KINDS) made with the JSON-rows body `good`."""
    number %= KINDS
    if number < len(MISTAKES):
        mistake, body = MISTAKES[number], json.loads(good)
        mistake.spoil(body)
        spoilt = json.dumps(body).encode()
        return Request(f"bad {mistake.name}", "/v1/rank", JSON, spoilt, status=mistake.status)
    return (
        Request("bad half a body", "/v1/rank", JSON, good[: len(good) // 2], status=422),
        Request("bad media type", "/v1/rank", "text/csv", good, status=415),
        Request(
            "bad encoding",
            "/v1/rank",
            JSON,
            good,
            status=415,
            headers=(("content-encoding", "br"),),
        ),
    )[number - len(MISTAKES)]
