"""The same job written plainly, for comparison: FastAPI with pydantic models; and a bare echo.

The plain one does what a careful engineer writes first: models for every body, redis-py, NumPy for
the user's records and the scores, the 50 best answered. No deadlines, no checksums, no admission.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from prometheus_client import Counter, Histogram
from pydantic import BaseModel, ConfigDict, Field, create_model

from service.features.codec import HEADER
from service.features.store import key
from service.features.users import PARTS
from tests.bench import gateway_job as job

LAYOUTS = job.SCHEMA.layouts


class Strict(BaseModel):
    """No unknown field, no number that is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


Features: Any = create_model("Features", __base__=Strict, **dict.fromkeys(job.NAMES, (float, ...)))


class Candidate(Strict):
    """One item."""

    item_id: int
    features: Features


class Context(Strict):
    """When."""

    hour: int = Field(ge=0, lt=24)


class RankRequest(Strict):
    """As rows."""

    request_id: str
    user_id: str
    timestamp: int
    deadline_ms: int
    top_k: int
    context: Context
    candidates: list[Candidate] = Field(min_length=1, max_length=2000)


class Item(BaseModel):
    """One of the best."""

    item_id: int
    score: float
    ctr: float
    ctcvr: float


class RankAnswer(BaseModel):
    """Best first."""

    request_id: str
    items: list[Item]


def ranked(request: RankRequest, values: Sequence[bytes | None]) -> RankAnswer:
    """Features to arrays, the stub's scores, the best of them."""
    stored = [value or b"" for value in values]
    np.frombuffer(stored[0], LAYOUTS["profile"].record, offset=HEADER.size)
    np.frombuffer(stored[1], LAYOUTS["lifelong"].record, offset=HEADER.size)
    np.frombuffer(stored[2], np.uint8)
    rows = [[getattr(c.features, name) for name in job.NAMES] for c in request.candidates]
    numbers = np.array(rows, np.float32)
    tasks = job.probabilities(len(numbers))
    order = np.argsort(-tasks["ctcvr"])[: request.top_k]
    items = [
        Item(
            item_id=request.candidates[i].item_id,
            score=float(tasks["ctcvr"][i]),
            ctr=float(tasks["ctr"][i]),
            ctcvr=float(tasks["ctcvr"][i]),
        )
        for i in order
    ]
    return RankAnswer(request_id=request.request_id, items=items)


def keys(user_id: str) -> list[str]:
    """Of the user's records."""
    return [key(job.SCHEMA, part, user_id) for part in PARTS.values()]


def plain(port: int, redis_url: str) -> None:
    """FastAPI + pydantic."""
    from redis.asyncio import Redis

    redis = Redis.from_url(redis_url)
    app = FastAPI()
    answered, seconds = Counter("answered", "Requests."), Histogram("seconds", "Seconds.")

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/rank", response_model=RankAnswer)
    async def rank(request: RankRequest) -> RankAnswer:
        with seconds.time():
            answer = ranked(request, await redis.mget(keys(request.user_id)))
        answered.inc()
        return answer

    uvicorn.run(app, port=port, log_level="error", access_log=False)


def echo(port: int, redis_url: str) -> None:
    """A bare ASGI application that sends back what it reads."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        chunks, more = [], True
        while more:
            message = await receive()
            chunks.append(message["body"])
            more = message["more_body"]
        body = b"".join(chunks)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(app, port=port, log_level="error", access_log=False, lifespan="off")
