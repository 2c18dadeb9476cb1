"""`POST /v1/rank` without ASGI's layers or the framework's routing; what any endpoint's failure is
answered with.

FastAPI documents the endpoint and serves it alike; finding a route, resolving dependencies,
handling exceptions and passing messages there cost as much as half of the ranking here.
"""

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from service.errors import InvalidRequest, ServiceError
from service.http.arrival import Arrival
from service.http.endpoints import rank_candidates
from service.http.gateway import Client, Gateway, RawHeaders
from service.http.guard import answer_bug
from service.http.replies import error_reply
from service.metrics import NO_SCENE

RANK = "/v1/rank"

Expected = ServiceError | ClientDisconnect


def is_ranking(scope: Scope) -> bool:
    """Whether the endpoint is ours."""
    return bool(scope["path"] == RANK and scope["method"] == "POST")


def arrive(gateway: Gateway, headers: RawHeaders, client: Client) -> Arrival | Response:
    """What the head of a ranking request told, or the answer to one that is refused by it."""
    try:
        return gateway.admit(headers, client)
    except ServiceError as error:
        gateway.metrics.refused.labels(NO_SCENE, error.type).inc()
        return error_reply(error)


async def answer(gateway: Gateway, scope: Scope, receive: Receive, arrival: Arrival) -> Response:
    """The answer to a ranking request, whatever becomes of it."""
    request = Request(scope, receive)
    try:
        if gateway.tracing is None:
            return await _answer(gateway, request, arrival)
        with gateway.tracing.request(request.headers) as traced:
            response = await _answer(gateway, request, arrival)
            traced.stages = request.state.stages
            traced.attributes["http.response.status_code"] = response.status_code
            traced.attributes["scene"] = getattr(request.state, "scene", NO_SCENE)
            return response
    except Exception:
        return answer_bug(gateway, scope)


async def finish(gateway: Gateway, scope: Scope, response: Response) -> None:
    """What is left to do once the answer has left; a bug in it is counted, and fails nobody."""
    if response.background is None:
        return
    try:
        await response.background()
    except Exception:
        answer_bug(gateway, scope)


async def _answer(gateway: Gateway, request: Request, arrival: Arrival) -> Response:
    try:
        return await rank_candidates(gateway, request, arrival)
    except (ServiceError, ClientDisconnect) as error:
        return answer_failure(gateway, request, error)


def answer_failure(gateway: Gateway, request: Request, error: Expected) -> Response:
    """Count a failure by its reason and say it."""
    if isinstance(error, ClientDisconnect):
        gateway.metrics.disconnected.inc()
        return Response(status_code=499)
    invalid = isinstance(error, InvalidRequest)
    counter = gateway.metrics.invalid if invalid else gateway.metrics.refused
    counter.labels(getattr(request.state, "scene", NO_SCENE), error.type).inc()
    return error_reply(error)
