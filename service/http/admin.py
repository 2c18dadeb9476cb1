"""`POST /v1/models/{alias}/switch`: an operator has another engine serve an alias."""

import hmac
from pathlib import Path

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service.errors import Forbidden, InvalidRequest
from service.http.gateway import Gateway
from service.http.replies import Document, reply


class SwitchRequest(Document):
    """Which package is to serve."""

    package: str = Field(description="directory of the package, as the gateway sees it")
    shadow_requests: int = Field(
        default=0, ge=0, le=10_000,
        description="live requests that the new engine scores first, for comparison only",
    )  # fmt: skip


class SwitchAnswer(Document):
    """Sent once the new engine serves."""

    alias: str
    version: str


async def switch_engine(
    gateway: Gateway, alias: str, body: SwitchRequest, request: Request
) -> Response:
    """Raises Forbidden, InvalidRequest for an unknown alias, or SwitchRefused."""
    token = gateway.settings.admin_token
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not token or not hmac.compare_digest(given.encode(), token.encode()):
        raise Forbidden("engines are switched with the admin_token of the gateway's settings only")
    switcher = gateway.switchers.get(alias)
    if switcher is None:
        raise InvalidRequest(
            "no such alias", path="path.alias", expected=f"one of {sorted(gateway.switchers)}"
        )
    version = await switcher.switch(Path(body.package), body.shadow_requests)
    return reply(SwitchAnswer(alias=alias, version=version).model_dump())
