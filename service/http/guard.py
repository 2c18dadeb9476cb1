"""The outermost layer: what nobody meant to happen is one 500, one count and one log entry."""

import logging

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ServiceError
from service.http.gateway import Gateway
from service.http.replies import error_reply
from service.logs import safe
from service.metrics import NO_SCENE

log = logging.getLogger("mtgr")


class BugGuard:
    """Pure ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, gateway: Gateway):
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            if scope["type"] != "http" or started:
                raise
            await answer_bug(self._gateway, scope)(scope, receive, send)


def answer_bug(gateway: Gateway, scope: Scope) -> Response:
    """Count and log the exception that is being handled; nothing of it reaches the caller."""
    state = scope.get("state", {})
    gateway.metrics.failed.labels(state.get("scene", NO_SCENE)).inc()
    log.exception("a bug failed request %s", safe(state.get("request_id", "unread")))
    return error_reply(ServiceError("a bug of ours; it has been logged"))
