"""`POST /v1/rank` without the framework's routing; what any endpoint's failure is answered with.

FastAPI documents the endpoint and would serve it alike; finding a route, resolving dependencies
and handling exceptions there cost half as much as all of the ranking here.
"""

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import InvalidRequest, ServiceError
from service.http.endpoints import rank_candidates
from service.http.gateway import Gateway
from service.http.replies import error_reply
from service.metrics import NO_SCENE

RANK = "/v1/rank"

Expected = ServiceError | ClientDisconnect


def refusal(gateway: Gateway, scope: Scope) -> Response | None:
    """The answer to a ranking request that is refused by its head; otherwise what the head told is
    kept for the endpoint."""
    if scope["path"] != RANK or scope["method"] != "POST":
        return None
    try:
        scope["state"]["arrival"] = gateway.admit(scope)
    except ServiceError as error:
        gateway.metrics.refused.labels(NO_SCENE, error.type).inc()
        return error_reply(error)
    return None


class HotPath:
    """Pure ASGI middleware: answers ranking requests itself and passes the others on."""

    def __init__(self, app: ASGIApp, gateway: Gateway):
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != RANK or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        tracing = self._gateway.tracing
        if tracing is None:
            response = await self._answer(request)
        else:
            with tracing.request(request.headers) as traced:
                response = await self._answer(request)
                traced.stages = request.state.stages
                traced.attributes["http.response.status_code"] = response.status_code
                traced.attributes["scene"] = getattr(request.state, "scene", NO_SCENE)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            return await rank_candidates(self._gateway, request)
        except (ServiceError, ClientDisconnect) as error:
            return answer_failure(self._gateway, request, error)


def answer_failure(gateway: Gateway, request: Request, error: Expected) -> Response:
    """Count a failure by its reason and say it."""
    if isinstance(error, ClientDisconnect):
        gateway.metrics.disconnected.inc()
        return Response(status_code=499)
    invalid = isinstance(error, InvalidRequest)
    counter = gateway.metrics.invalid if invalid else gateway.metrics.refused
    counter.labels(getattr(request.state, "scene", NO_SCENE), error.type).inc()
    return error_reply(error)
