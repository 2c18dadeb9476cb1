"""A real Valkey server for the session, and a gateway over it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from service.features.embedded import embedded_server
from tests.service.clock import Clock
from tests.service.world import SCHEMA, opener, running, settings


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A server of our own, on a short path: Unix sockets have short names."""
    with (
        tempfile.TemporaryDirectory(prefix="mtgr-") as directory,
        embedded_server(Path(directory)) as url,
    ):
        yield url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A plain client, to look at what is stored and to damage it."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(scope="session")
def client(redis_url: str) -> Iterator[httpx.Client]:
    """A client of one gateway shared by the tests that do not disturb it."""
    with running(settings(redis_url), opener(SCHEMA)) as client:
        yield client


@pytest.fixture
def user_id() -> str:
    """A user nobody else has touched, named so that keys must be encoded."""
    return f"u {{{uuid4().hex}}}/é"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of admission, its limit and deadlines."""
    return Clock(monkeypatch)
