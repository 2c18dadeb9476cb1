"""Answers, as they are encoded on the hot path and as OpenAPI documents them."""

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.deadline import Stages
from service.errors import ServiceError
from service.explain import Explanation
from service.http.wire import Formats
from service.ranking import Floats, RankedItems

MEDIA: dict[Formats, str] = {"json": "application/json", "msgpack": "application/msgpack"}
_ENCODERS: dict[Formats, Any] = {
    "json": msgspec.json.Encoder(),
    "msgpack": msgspec.msgpack.Encoder(),
}


class Document(BaseModel):
    """Base of what OpenAPI documents."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class RankedItem(Document):
    """One item of the answer."""

    item_id: int
    score: float | None = Field(description="what it was ordered by; null where nothing is known")
    ctr: float | None = Field(description="probability of a click, if the model ranked")
    ctcvr: float | None = Field(description="probability of click and order, if the model ranked")


class ItemExplanation(Document):
    """Why an item stands where it does."""

    features: dict[str, float] = Field(description="as the model saw them: joined, with defaults")
    without: dict[str, float] | None = Field(
        description="change of the score when a cross feature is taken out, by feature"
    )


class RankExplanation(Document):
    """What the answer was made of; only where `?explain=true` asks for it."""

    stages_ms: dict[str, float] = Field(description="milliseconds by stage, up to explaining")
    tokens: dict[str, int] = Field(description="profile, lifelong, realtime, candidate")
    profile: dict[str, float]
    context: dict[str, float]
    neutral: dict[str, float] = Field(
        description="what stands in for a cross feature that is taken out: its default; without "
        "one, 0 of an id or category, the median over the candidates of a number"
    )
    why_not: str | None = Field(description="why nothing could be taken out")
    items: list[ItemExplanation] = Field(description="in the order of the answer's items")


class RankAnswer(Document):
    """The ranked list, best first."""

    request_id: str
    model_version: str
    degraded: bool
    reason: str | None = Field(
        description="why degraded: features_<why> or backend_<why>, as features_timeout"
    )
    ranked_by: Literal["model", "recall_score", "popularity", "input_order"]
    missing: dict[str, str] = Field(
        description="features that could not be had: profile, lifelong, realtime or item, each "
        "with absent, truncated, corrupt, old_schema, timeout, unavailable, error or circuit_open; "
        "stale (too old for the scene) and remembered (Redis failed, its last answer) were used"
    )
    items: list[RankedItem]
    explanation: RankExplanation | None = Field(default=None, description="with ?explain=true")


class EventsAnswer(Document):
    """Sent once Redis has acknowledged."""

    appended: int
    repeated: int = Field(description="events whose id the sequence holds already")
    labels: int


class UserAnswer(Document):
    """Sent once Redis has acknowledged."""

    user_id: str
    lifelong: int = Field(description="rows kept, the newest")


class ErrorDetail(Document):
    """One problem. `path` is a JSONPath into the body."""

    type: Annotated[str, Field(description="a fixed word, as in the metrics")]
    path: str | None
    problem: str
    expected: str | None


class ErrorAnswer(Document):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


class Item(msgspec.Struct, gc=False):
    """RankedItem as it is encoded."""

    item_id: int
    score: float | None
    ctr: float | None
    ctcvr: float | None


class Answer(msgspec.Struct, gc=False):
    """RankAnswer as it is encoded."""

    request_id: str
    model_version: str
    degraded: bool
    reason: str | None
    ranked_by: str
    missing: Any
    items: list[Item]
    explanation: dict[str, Any] | UnsetType = UNSET


def rank_answer(request_id: str, version: str, ranked: RankedItems) -> Answer:
    """The answer to a ranking request."""
    nothing: list[float | None] = [None] * len(ranked.item_ids)
    tasks = {name: _numbers(values) for name, values in ranked.tasks.items()}
    ctr, ctcvr = tasks.get("ctr", nothing), tasks.get("ctcvr", nothing)
    items = map(Item, ranked.item_ids.tolist(), _numbers(ranked.scores), ctr, ctcvr)
    return Answer(
        request_id=request_id,
        model_version=version,
        degraded=ranked.reason is not None,
        reason=ranked.reason,
        ranked_by=ranked.ranked_by,
        missing=ranked.missing,
        items=list(items),
    )


def explained(explanation: Explanation, stages: Stages) -> dict[str, Any]:
    """RankExplanation as it is encoded."""
    nothing: tuple[None, ...] = (None,) * len(explanation.features)
    without = (*explanation.without, *nothing)[: len(nothing)]
    return {
        "stages_ms": {stage: 1e3 * taken for stage, taken in stages.seconds.items()},
        "tokens": explanation.tokens,
        "profile": explanation.profile,
        "context": explanation.context,
        "neutral": explanation.neutral,
        "why_not": explanation.why_not,
        "items": [
            {"features": features, "without": changes}
            for features, changes in zip(explanation.features, without, strict=True)
        ],
    }


def encode(answer: Any, format: Formats) -> bytes:
    """Bytes of an answer."""
    content: bytes = _ENCODERS[format].encode(answer)
    return content


class Reply(Response):
    """Starlette's response of bytes whose headers need no way from names to bytes."""

    def __init__(self, body: bytes, format: Formats, status: int):
        self.body, self.status_code, self.background = body, status, None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), _CONTENT_TYPES[format]]


_CONTENT_TYPES = {format: (b"content-type", media.encode()) for format, media in MEDIA.items()}


def reply(answer: Any, format: Formats = "json", status: int = 200) -> Reply:
    """A response with the answer as its body."""
    return Reply(encode(answer, format), format, status)


def error_reply(error: ServiceError) -> Response:
    """`{"error": {"type", "path", "problem", "expected"}}`, always JSON."""
    detail = {
        "type": error.type,
        "path": error.path,
        "problem": error.problem,
        "expected": error.expected,
    }
    response = reply({"error": detail}, status=error.status)
    if error.retry_after_s is not None:
        response.raw_headers.append((b"retry-after", b"%d" % error.retry_after_s))
    return response


def _numbers(values: Floats) -> list[float | None]:
    numbers: list[Any] = values.tolist()
    if math.isnan(sum(numbers)):
        return [None if math.isnan(number) else number for number in numbers]
    return numbers
