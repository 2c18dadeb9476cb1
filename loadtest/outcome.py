"""What became of a request: one of six outcomes, and a fixed word for why.

    answered   ranked by the model (or an event taken), in time
    degraded   ranked by what was left, in time, and said so
    refused    429, or 503 with Retry-After, in time
    invalid    a bad request got the 4xx that it deserves
    late       a valid request whose answer or refusal came after its deadline, or never
    failed     anything else: no connection, 5xx, a wrong answer, a 4xx for a valid request

Each request has exactly one, so the counts add up to what was sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from loadtest.request import Request


class Outcome(StrEnum):
    """Best first: what is stacked in the charts from the bottom up."""

    ANSWERED = "answered"
    DEGRADED = "degraded"
    REFUSED = "refused"
    INVALID = "invalid"
    LATE = "late"
    FAILED = "failed"


SERVED = (Outcome.ANSWERED, Outcome.DEGRADED, Outcome.LATE)
"""Their latencies are the service's; a quick refusal must not make a service look fast."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, its header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Item(msgspec.Struct):
    item_id: int


class _Answer(msgspec.Struct):
    request_id: str
    degraded: bool
    reason: str | None
    items: list[_Item]


class _Problem(msgspec.Struct):
    type: str


class _Refusal(msgspec.Struct):
    error: _Problem


_DECODERS: dict[type, dict[str, Any]] = {
    document: {
        "application/json": msgspec.json.Decoder(document),
        "application/msgpack": msgspec.msgpack.Decoder(document),
    }
    for document in (_Answer, _Refusal)
}


def judge(request: Request, reply: Reply, latency_ms: float) -> tuple[Outcome, str]:
    """Outcome and reason ("" where there is nothing to say) of a reply that came."""
    if request.status != 200:
        return _judge_refusal(request, reply)
    if reply.status == 429 or (reply.status == 503 and "retry-after" in reply.headers):
        outcome, reason = Outcome.REFUSED, f"{reply.status} {_error_type(reply)}"
    elif reply.status != 200:
        return Outcome.FAILED, f"{reply.status} {_error_type(reply)}"
    elif request.items is None:
        outcome, reason = Outcome.ANSWERED, ""
    else:
        outcome, reason = _judge_answer(request, reply)
    if outcome is not Outcome.FAILED and latency_ms > (request.deadline_ms or float("inf")):
        return Outcome.LATE, f"{outcome} after the deadline"
    return outcome, reason


def _judge_refusal(request: Request, reply: Reply) -> tuple[Outcome, str]:
    """Of a bad request."""
    if reply.status == request.status:
        return Outcome.INVALID, request.kind
    if reply.status in (429, 503):
        return Outcome.REFUSED, f"{reply.status} {_error_type(reply)}"
    return Outcome.FAILED, f"{reply.status} for {request.kind}, expected {request.status}"


def _judge_answer(request: Request, reply: Reply) -> tuple[Outcome, str]:
    answer = _decoded(_Answer, reply)
    if answer is None:
        return Outcome.FAILED, "200 without a ranked answer"
    if answer.request_id != request.request_id:
        return Outcome.FAILED, "another request's answer"
    if len(answer.items) != request.items:
        return Outcome.FAILED, "a list of the wrong length"
    if answer.degraded:
        return Outcome.DEGRADED, answer.reason or "no reason given"
    return Outcome.ANSWERED, ""


def _error_type(reply: Reply) -> str:
    refusal = _decoded(_Refusal, reply)
    return "without a reason" if refusal is None else str(refusal.error.type)


def _decoded(document: type, reply: Reply) -> Any:
    """The body as `document`; None where it is anything else."""
    decoder = _DECODERS[document].get(reply.headers.get("content-type", "").partition(";")[0])
    if decoder is None:
        return None
    try:
        return decoder.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def server_timing(header: str) -> dict[str, float]:
    """Milliseconds by stage of a `Server-Timing` header (W3C); without its total."""
    stages: dict[str, float] = {}
    for entry in header.split(","):
        name, _, parameter = entry.strip().partition(";dur=")
        if parameter and name != "total":
            stages[name] = float(parameter)
    return stages
