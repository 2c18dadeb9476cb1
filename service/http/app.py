"""The FastAPI application over a gateway: routes, errors, documents."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from service.errors import ServiceError
from service.exposition import exposition
from service.http import endpoints
from service.http.admin import SwitchAnswer, SwitchRequest, switch_engine
from service.http.documents import Documents
from service.http.gateway import Gateway
from service.http.guard import BugGuard
from service.http.hot_path import RANK, Expected, answer_failure
from service.http.refusals import refused_fields
from service.http.replies import (
    MEDIA,
    ErrorAnswer,
    EventsAnswer,
    RankAnswer,
    UserAnswer,
    error_reply,
    reply,
)

ABOUT = """Ranks a user's candidates with MTGR, inside the caller's deadline.

Bodies are JSON or MessagePack (`Content-Type`), answers likewise (`Accept`, else as the body).
Candidates are a list of objects or one object of columns; in MessagePack a numeric column may be
`{"dtype": "<f4", "data": bin}`, little-endian, dtype one of `<f2 <f4 <f8 u1 <i4 <i8`.
Item features left out are taken from the item's record in Redis."""

EXPLAIN = Query(
    default=False,
    description="say for each item what the model saw and what each cross feature was worth: "
    "one more run of the engine",
)

ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorAnswer, "description": "Invalid: the field's path and what was expected"},
    413: {"model": ErrorAnswer, "description": "The body is too large"},
    415: {"model": ErrorAnswer, "description": "Not JSON or MessagePack"},
    429: {"model": ErrorAnswer, "description": "Overloaded: come back after Retry-After seconds"},
    503: {"model": ErrorAnswer, "description": "Not ready, or Redis did not acknowledge"},
}


def create_app(gateway: Gateway) -> ASGIApp:
    """The application; the gateway starts and stops with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(title="MTGR ranking", description=ABOUT, lifespan=lifespan)
    _add_work(app, gateway)
    _add_operations(app, gateway)
    _add_errors(app, gateway)
    app.openapi = lambda: _openapi(app, gateway)  # type: ignore[method-assign]
    return BugGuard(app, gateway)


def _add_work(app: FastAPI, gateway: Gateway) -> None:
    @app.post(RANK, responses={200: {"model": RankAnswer}, **ERRORS})
    async def rank(request: Request, explain: bool = EXPLAIN) -> Response:
        """Rank candidates for a user. `Server-Timing` tells where the time went."""
        arrival = gateway.admit(request.scope["headers"], request.scope["client"])
        return await endpoints.rank_candidates(gateway, request, arrival)

    @app.post("/v1/events", responses={200: {"model": EventsAnswer}, **ERRORS})
    async def events(request: Request) -> Response:
        """Append behaviour to a user's real-time sequence; write labels for joining."""
        return await endpoints.take_events(gateway, request)

    @app.put(endpoints.USERS + "{id:path}", responses={200: {"model": UserAnswer}, **ERRORS})
    async def users(request: Request, id: str) -> Response:
        """Replace a user's profile and lifelong sequence."""
        return await endpoints.put_user(gateway, request)


def _add_operations(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process serves."""
        return {"status": "live"}

    @app.get("/health/ready", responses={503: {"model": ErrorAnswer}})
    async def ready() -> dict[str, str]:
        """Every engine is loaded, has passed its golden requests, and is warm."""
        gateway.require_ready()
        return {"status": "ready"}

    @app.get("/v1/models")
    async def models() -> Response:
        """Scenes, and the model that ranks each."""
        return reply({"default_scene": gateway.scenes.default, "scenes": describe(gateway)})

    @app.post("/v1/models/{alias}/switch", responses={200: {"model": SwitchAnswer}, **ERRORS})
    async def switch(alias: str, body: SwitchRequest, request: Request) -> Response:
        """Have another package's engine serve an alias; answered once it does. Needs
        `Authorization: Bearer` and the setting `admin_token`."""
        return await switch_engine(gateway, alias, body, request)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        gateway.metrics.sample()
        text = exposition(gateway.metrics.registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


def describe(gateway: Gateway) -> dict[str, Any]:
    """What each scene is ranked with."""
    scenes = {}
    for name, scene in gateway.scenes.by_name.items():
        config = scene.served.config
        scenes[name] = {
            "model": scene.served.alias,
            "version": config.version,
            "ready": scene.served.live.backend.ready,
            "engine": gateway.settings.models[scene.served.alias].engine,
            "tasks": list(config.model.tasks),
            "score": scene.model.formula.model_dump(),
            "top_k": scene.top_k,
            "fallback": [*scene.model.fallback, "input_order"],
            "schema": config.features.model_dump(),
            "layout_hash": f"{config.features.layout_hash:016x}",
        }
    return scenes


def _add_errors(app: FastAPI, gateway: Gateway) -> None:
    """Each failure is counted once, by reason, and answered in one shape."""

    async def on_expected(request: Request, error: Expected) -> Response:
        return answer_failure(gateway, request, error)

    async def on_http_error(request: Request, error: HTTPException) -> Response:
        failure = ServiceError(error.detail)
        failure.status, failure.type = error.status_code, "http"
        return error_reply(failure)

    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return answer_failure(gateway, request, refused_fields(error))

    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        ServiceError: on_expected,
        ClientDisconnect: on_expected,
        HTTPException: on_http_error,
        RequestValidationError: on_invalid,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _openapi(app: FastAPI, gateway: Gateway) -> dict[str, Any]:
    """FastAPI's document with the bodies of every served schema, made anew for other limits."""
    if app.openapi_schema and app.state.limits is gateway.limits:
        return app.openapi_schema
    app.state.limits = gateway.limits
    document = get_openapi(
        title=app.title, version="1", description=app.description, routes=app.routes
    )
    every = [
        Documents(served.config.features, gateway.limits, f"{alias}.")
        for alias, served in gateway.scenes.served.items()
    ]
    models: list[Any] = [
        (model, "validation") for d in every for model in (d.rank, d.events, d.user)
    ]
    refs, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= definitions["$defs"]
    for path, method, kind in (
        (RANK, "post", "rank"),
        ("/v1/events", "post", "events"),
        (endpoints.USERS + "{id}", "put", "user"),
    ):
        schema = {"anyOf": [refs[getattr(d, kind), "validation"] for d in every]}
        content = {media: {"schema": schema} for media in MEDIA.values()}
        document["paths"][path][method]["requestBody"] = {"required": True, "content": content}
    app.openapi_schema = document
    return document
