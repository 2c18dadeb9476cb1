"""The dashboards in a browser without Grafana: the same JSON and the same queries, drawn plainly.

For a laptop and for checks. A deployment imports the files of helm/files/dashboards into Grafana.
"""

from importlib.resources import files

import httpx
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from service.observability.boards import boards


def viewer(prometheus: str) -> Starlette:
    """An application that shows the dashboards over the Prometheus server at that URL."""
    page = files("service.observability").joinpath("viewer.html").read_text()
    built = {str(board.uid): board for board in (each.build() for each in boards())}
    encoder = JSONEncoder(sort_keys=True)

    async def show(request: Request) -> Response:
        return HTMLResponse(page)

    async def index(request: Request) -> Response:
        return JSONResponse([{"uid": uid, "title": board.title} for uid, board in built.items()])

    async def board(request: Request) -> Response:
        found = built.get(request.path_params["uid"])
        if found is None:
            return JSONResponse({"error": f"one of {sorted(built)}"}, 404)
        return Response(encoder.encode(found), media_type="application/json")

    async def query(request: Request) -> Response:
        url = f"{prometheus}/api/v1/{request.path_params['kind']}"
        async with httpx.AsyncClient() as client:
            answer = await client.get(url, params=dict(request.query_params))
        return Response(answer.content, answer.status_code, media_type="application/json")

    return Starlette(
        routes=[
            Route("/", show),
            Route("/boards", index),
            Route("/boards/{uid}", board),
            Route("/api/{kind}", query),
        ]
    )
