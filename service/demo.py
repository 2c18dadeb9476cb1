"""`mtgr demo`: a served model, the users of a simulated marketplace, and one ranked request.

Everything is real but the people: the gateway runs as its own process with its own Redis server,
and the request crosses HTTP. Needs the base install only.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep, time

import click
import httpx

from model_def.data.past import Past
from model_def.data.simulator import HOME, HOUR_MS, SCHEMA, Marketplace
from model_def.data.traffic import SCENE, Traffic, latest_snapshot, stored_items, stored_users
from service.answer import show
from service.features.store import FeatureStore, connect
from service.load import load_items, load_users
from service.settings import StoreSettings

PACKAGE = Path(__file__).parent / "demo_package"
STATE = Path("var/demo")
PID, LOG, REDIS = STATE / "server.pid", STATE / "server.log", STATE / "redis"
PATIENCE_S = 60.0
"""Longest wait for the server to start or to stop, seconds."""

LOOK_EVERY_S = 0.05


@click.command()
@click.option("--package", default=PACKAGE, type=click.Path(path_type=Path), help="what to serve")
@click.option("--port", default=8000, show_default=True, help="TCP port of the server")
@click.option("--candidates", default=200, show_default=True, help="candidates to rank")
@click.option("--stop", is_flag=True, help="only stop the server that the demo left up")
def demo(package: Path, port: int, candidates: int, stop: bool) -> None:
    """Serve a package with a simulated marketplace's users, rank for one, leave the server up."""
    stop_server()
    if stop:
        return
    server = start_server(package, port)
    url = f"http://127.0.0.1:{port}"
    await_ready(server, url)

    now_ms = int(time() * 1000)
    market = Marketplace()
    traffic = Traffic(Past(market, latest_snapshot(now_ms)))
    # The most active user opened the app an hour ago, clicked around, and comes back now.
    user = int(market.activity.argmax())
    for _ in traffic.session(user, now_ms - HOUR_MS, candidates=24):
        continue
    body = traffic.body(traffic.ask(user, now_ms, HOME, candidates)) | {"top_k": 10}
    click.echo(f"loading {market.users} users and {market.items} items into Redis ...")
    asyncio.run(load(traffic.past, f"unix://{(REDIS / 'valkey.sock').resolve()}"))

    click.echo(f"POST {url}/v1/rank: user {body['user_id']}, {candidates} candidates\n")
    show(httpx.post(f"{url}/v1/rank", json=body, timeout=PATIENCE_S).raise_for_status())
    click.echo(f"\nThe server is up: {url}/docs and {url}/metrics; its log is {LOG}.")
    click.echo("Stop it with: make demo-stop")


def start_server(package: Path, port: int) -> subprocess.Popen[bytes]:
    """Start `mtgr serve` on its own, with a fresh Redis server in the demo's state directory."""
    REDIS.mkdir(parents=True, exist_ok=True)
    models = json.dumps({SCENE: {"package": str(package), "threads": os.cpu_count()}})
    process = launch(LOG, "--models", models, "--port", str(port), "--redis-dir", str(REDIS))
    PID.write_text(str(process.pid))
    return process


def launch(log: Path, *flags: str) -> subprocess.Popen[bytes]:
    """`mtgr serve` in a process that outlives this one, writing to `log`."""
    command = [sys.executable, "-m", "mtgr", "serve", *flags]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def await_ready(server: subprocess.Popen[bytes], url: str, log: Path = LOG) -> None:
    """Ask until the engines are loaded, verified and warm; a dead server's log says why."""
    until = monotonic() + PATIENCE_S
    while monotonic() < until and server.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        sleep(LOOK_EVERY_S)
    raise click.ClickException(f"the server did not become ready:\n{log.read_text()[-2000:]}")


async def load(past: Past, redis_url: str) -> None:
    """Write every user and item to a Redis server."""
    settings = StoreSettings(redis_url=redis_url)
    redis = connect(redis_url, settings.redis_connections)
    store = FeatureStore(redis, SCHEMA, settings)
    try:
        await load_users(store, stored_users(past))
        await load_items(store, *stored_items(past))
    finally:
        await redis.aclose()


def running() -> int | None:
    """Process id of the server that a demo left up, if it still lives."""
    if not PID.exists():
        return None
    pid = int(PID.read_text())
    command = Path(f"/proc/{pid}/cmdline")
    return pid if command.exists() and b"mtgr" in command.read_bytes() else None


def stop_server() -> None:
    """Ask a server that an earlier demo left up to finish, and wait until it has."""
    pid = running()
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    until = monotonic() + PATIENCE_S
    while running():
        if monotonic() > until:
            raise click.ClickException(f"the server (process {pid}) does not stop; see {LOG}")
        sleep(LOOK_EVERY_S)
    PID.unlink()
    click.echo("stopped the demo's server")
