"""`mtgr dashboards`: Prometheus, live traffic and the dashboards over a running gateway."""

import asyncio
import math
import signal
from pathlib import Path

import click
import httpx
import uvicorn

from service.observability.prometheus import running
from service.observability.viewer import viewer
from service.traffic import LiveTraffic

STATE = Path("var/dashboards")


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="of the gateway")
@click.option("--port", default=3000, show_default=True, help="TCP port of the dashboards")
@click.option("--prometheus-port", default=9090, show_default=True, help="TCP port")
@click.option("--triton", default="", help="host:port of a Triton server's metrics; empty: none")
@click.option("--rate", default=20.0, show_default=True, help="requests a second")
@click.option("--candidates", default=100, show_default=True, help="candidates of a request")
@click.option("--seconds", default=math.inf, help="stop after so long  [at Ctrl-C]")
def dashboards(
    url: str, port: int, prometheus_port: int, triton: str, rate: float, candidates: int,
    seconds: float,
) -> None:  # fmt: skip
    """Watch a gateway: scrape it, send it the traffic of the demo's users, show the dashboards."""
    try:
        httpx.get(f"{url}/health/live").raise_for_status()
    except httpx.HTTPError as error:
        raise click.ClickException(f"{url}: {error}; run 'make demo' first") from None
    targets = {"mtgr-gateway": [httpx.URL(url).netloc.decode()]}
    if triton:
        targets["triton"] = [triton]
    # uvicorn ends on a signal and then raises it again: then everything else ends in order too.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: None)
    with running(STATE, prometheus_port, targets) as prometheus:
        config = uvicorn.Config(viewer(prometheus), port=port, log_level="warning")
        server = uvicorn.Server(config)
        click.echo(f"dashboards: http://127.0.0.1:{port}   Prometheus and its alerts: {prometheus}")
        click.echo("stop with Ctrl-C" if math.isinf(seconds) else f"for {seconds:g} s")
        asyncio.run(_watch(server, url, rate, candidates, seconds))


async def _watch(
    server: uvicorn.Server, url: str, rate: float, candidates: int, seconds: float
) -> None:
    serving = asyncio.create_task(server.serve())
    traffic = LiveTraffic(url, candidates)
    driving = asyncio.create_task(traffic.drive(rate, seconds))
    await asyncio.wait({serving, driving}, return_when=asyncio.FIRST_COMPLETED)
    driving.cancel()
    server.should_exit = True
    await asyncio.gather(serving, driving, return_exceptions=True)
    click.echo(f"{traffic.answered} requests answered, {traffic.failed} not")
