"""The gateway's commands: serve, load-features, rank, metrics, key, health."""

import asyncio
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import httpx
from pydantic_core import PydanticUndefined

from service import logs
from service.answer import show
from service.errors import BadSetting, DependencyFailed
from service.setting_sources import load_settings
from service.settings import PREFIX, Settings, StoreSettings

AFTER_ALL = (1 << 63) - 1


def flags_of(settings: type[StoreSettings]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A flag for every setting, its help and unit taken from the setting itself."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(settings.model_fields.items()):
            plain = field.default in (PydanticUndefined, "", {})
            about = f"{field.description}" + ("" if plain else f"  [{field.default}]")
            command = click.option(f"--{name.replace('_', '-')}", name, help=about)(command)
        return command

    return add


@contextmanager
def faults_explained() -> Iterator[None]:
    """A setting or a dependency at fault is told in words, without a traceback."""
    try:
        yield
    except (BadSetting, DependencyFailed) as fault:
        raise click.ClickException(str(fault)) from None


def given(flags: dict[str, str | None]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


@click.command(epilog=f"Flags are environment variables too: --redis-url is {PREFIX}REDIS_URL.")
@click.argument("package", required=False, type=click.Path(path_type=Path))
@flags_of(Settings)
def serve(package: Path | None, **flags: str | None) -> None:
    """Serve packages over HTTP. PACKAGE is short for --models with that one package."""
    from service.serve import run

    logs.configure()
    settings = given(flags)
    with faults_explained():
        if package is not None:
            if "models" in settings:
                raise BadSetting("PACKAGE and --models exclude each other")
            settings["models"] = {"default": {"package": package}}
        read = partial(load_settings, settings, Settings)
        run(read(), read)


@click.command()
@click.argument(
    "directory", metavar="LOGS", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--until-ms",
    type=int,
    default=AFTER_ALL,
    help="load what was known at this time, milliseconds since 1970  [all]",
)
@flags_of(StoreSettings)
def load_features(directory: Path, until_ms: int, **flags: str | None) -> None:
    """Load users and items of training LOGS into Redis."""
    from tqdm import tqdm

    from model_def.data.parquet import read_logs
    from model_def.data.stored import items_of, users_of
    from service.features.embedded import embedded_server
    from service.features.store import FeatureStore, connect
    from service.load import load_items, load_users

    with faults_explained(), ExitStack() as stack:
        settings = load_settings(given(flags), StoreSettings)
        read, rejects = read_logs(directory)
        url = settings.redis_url or stack.enter_context(embedded_server(settings.redis_dir))

        async def load() -> tuple[int, int]:
            redis = connect(url, settings.redis_connections)
            store = FeatureStore(redis, read.schema, settings)
            try:
                users = await load_users(store, tqdm(users_of(read, until_ms), "users", delay=2))
                return users, await load_items(store, *items_of(read, until_ms))
            finally:
                await redis.aclose()

        users, items = asyncio.run(load())
    for (file, reason), rows in sorted(rejects.counts.items()):
        click.echo(f"{rows} rows of {file} not used: {reason}")
    if rejects:
        rejects.write(directory / "load-rejects.csv")
    click.echo(f"{users} users and {items} items of schema {read.schema.name!r} loaded into {url}")


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@flags_of(StoreSettings)
def labels(out: Path, **flags: str | None) -> None:
    """Write exposures, clicks and orders of /v1/events to OUT, for 'mtgr join'.

    A folder a schema; each run continues after the last. Beside a gateway with a Redis of its own,
    give that server's --redis-url: unix://<redis_dir>/valkey.sock.
    """
    from redis import Redis
    from redis.exceptions import RedisError

    from service.features.embedded import embedded_server
    from service.labels import export_labels, schemas_with_labels

    with faults_explained(), ExitStack() as stack:
        settings = load_settings(given(flags), StoreSettings)
        url = settings.redis_url or stack.enter_context(embedded_server(settings.redis_dir))
        try:
            redis = stack.enter_context(Redis.from_url(url))
            for schema in schemas_with_labels(redis):
                exported = export_labels(redis, schema, out / schema)
                lost = f", {exported.lost} lost: the stream was too short" * bool(exported.lost)
                click.echo(f"{out / schema}: {exported.written} labels{lost}")
        except RedisError as error:
            raise click.ClickException(f"{url}: {error}") from None


@click.command()
@click.argument("request", type=click.File("rb"))
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="of the gateway")
def rank(request: Any, url: str) -> None:
    """Send REQUEST (a file of JSON, or MessagePack where its name ends so; - for standard input)
    and print the ranked answer."""
    packed = str(getattr(request, "name", "")).endswith(".msgpack")
    media = "application/msgpack" if packed else "application/json"
    headers = {"content-type": media, "accept": "application/json"}
    try:
        response = httpx.post(f"{url}/v1/rank", content=request.read(), headers=headers, timeout=70)
    except httpx.TransportError as error:
        raise click.ClickException(f"{url}: {error}; is 'mtgr serve' running there?") from None
    if response.status_code != 200:
        detail = response.json()["error"]
        click.echo(f"{response.status_code} {detail['type']}: {detail['problem']}", err=True)
        if detail["path"]:
            click.echo(f"at {detail['path']}, expected {detail['expected']}", err=True)
        sys.exit(1)
    show(response)


@click.command()
def metrics() -> None:
    """Print every metric that the gateway exports, as a Markdown table."""
    from service.catalogue import table
    from service.metrics import Metrics

    click.echo(table(Metrics().catalogue.entries))


@click.command()
@click.argument("name")
def key(name: str) -> None:
    """Make an API key for the caller NAME: the key for the caller, and the entry for the file of
    the setting api_keys_file, which holds its hash alone."""
    if not name or "." in name:
        raise click.BadParameter("expected a name without a dot")
    secret = secrets.token_hex(32)
    click.echo(f"{name}.{secret}")
    click.echo(json.dumps({name: {"sha256": hashlib.sha256(secret.encode()).hexdigest()}}))


@click.command()
def health() -> None:
    """Exit with 0 if the gateway of this machine is ready, else say why not and exit with 1."""
    url = f"http://127.0.0.1:{os.environ.get(f'{PREFIX}PORT', '8000')}/health/ready"
    try:
        answer = httpx.get(url, timeout=2)
    except httpx.TransportError as error:
        raise click.ClickException(f"{url}: {error}") from None
    if answer.status_code != httpx.codes.OK:
        raise click.ClickException(answer.json()["error"]["problem"])
