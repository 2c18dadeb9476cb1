"""Of connections to one server: which are used again, and what becomes of one that hangs."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.backends import http_connections
from service.backends.http_connections import Connections
from tests.service.told_server import PATIENT_S, ToldServer

ASK = b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody"


def answer(text: bytes, more: bytes = b"") -> bytes:
    """A reply with this body."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(text), more, text)


def asked(server: ToldServer, use: Callable[[Connections], Awaitable[Any]]) -> Any:
    """What `use` gives of connections to the server."""

    async def run(address: str) -> Any:
        connections = Connections(address)
        try:
            return await use(connections)
        finally:
            connections.close()

    return server.asked(run)


async def text(connections: Connections) -> bytes:
    """The body of an answer."""
    return (await connections.ask(ASK)).body


async def twice(connections: Connections) -> list[bytes]:
    return [await text(connections), await text(connections)]


async def hang(server: ToldServer, connections: Connections) -> None:
    """One request is given up, and all others from now on are answered."""
    server.may_answer.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await connections.ask(ASK)
    server.may_answer = asyncio.Event()
    server.may_answer.set()


def test_a_connection_is_used_again() -> None:
    """Requests one after another share it, and each has its own answer."""
    server = ToldServer(answer(b"first"), answer(b"second", b"Name: value\r\n"))
    assert asked(server, twice) == [b"first", b"second"]
    assert server.connections == 1


def test_headers_are_those_of_the_answer() -> None:
    """By name in lower case, and none of the answer before."""
    server = ToldServer(answer(b"", b"One: 1\r\n"), answer(b"", b"Two: 2\r\n"))

    async def headers(connections: Connections) -> list[dict[bytes, bytes]]:
        return [(await connections.ask(ASK)).headers for _ in range(2)]

    assert asked(server, headers) == [
        {b"content-length": b"0", b"one": b"1"},
        {b"content-length": b"0", b"two": b"2"},
    ]


def test_a_request_on_a_connection_that_had_ended_is_asked_anew() -> None:
    """A server that is started again costs no request."""
    server = ToldServer(answer(b"first"), None, answer(b"second"))
    assert asked(server, twice) == [b"first", b"second"]
    assert server.connections == 2


def test_a_connection_that_is_to_end_is_not_used_again() -> None:
    """The server said so in its answer."""
    server = ToldServer(answer(b"first", b"Connection: close\r\n"), answer(b"second"))
    assert asked(server, twice) == [b"first", b"second"]
    assert server.connections == 2


@pytest.mark.parametrize(
    ("reply", "told"),
    [(None, "ended before an answer"), (b"SSH-2.0-OpenSSH_9.6\r\n", "not HTTP")],
    ids=["ended", "not HTTP"],
)
def test_a_connection_that_gives_no_answer_is_an_error(reply: bytes | None, told: str) -> None:
    """It says what came instead."""
    with pytest.raises(ConnectionError, match=told):
        asked(ToldServer(reply), text)


def test_an_answer_that_nobody_waits_for_is_nobodys() -> None:
    """The next request on its connection has its own."""
    server = ToldServer(answer(b"late"), answer(b"next"))

    async def use(connections: Connections) -> bytes:
        late = server.may_answer
        await hang(server, connections)
        late.set()
        while connections.given_up:
            await asyncio.sleep(0)
        return await text(connections)

    assert asked(server, use) == b"next"
    assert server.connections == 1


def test_a_connection_that_hangs_holds_up_its_own_request_alone() -> None:
    """The next one is sent on another."""
    server = ToldServer(answer(b"next"))

    async def use(connections: Connections) -> bytes:
        await hang(server, connections)
        return await text(connections)

    assert asked(server, use) == b"next"
    assert server.connections == 2


def test_what_was_idle_before_a_request_that_hangs_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the other end has gone without a word, one request tells of all old connections; one
    that was used since is well."""
    monkeypatch.setattr(http_connections, "SILENT_S", 0.2)
    server = ToldServer(*[answer(b"")] * 6)

    async def use(connections: Connections) -> None:
        await asyncio.gather(*(text(connections) for _ in range(4)))
        assert len(connections.idle) == 4
        await hang(server, connections)
        assert await text(connections) == b""
        well = connections.idle[-1]
        while len(connections.idle) > 1:
            await asyncio.sleep(0)
        assert connections.idle == [well]
        assert await text(connections) == b""

    asked(server, use)
    assert server.connections == 4


def test_a_connection_that_hangs_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent on it is not counted any longer."""
    monkeypatch.setattr(http_connections, "SILENT_S", 0.05)
    monkeypatch.setattr(http_connections, "GIVEN_UP_S", 0.05)
    server = ToldServer()

    async def use(connections: Connections) -> None:
        await hang(server, connections)
        assert connections.given_up
        while connections.open:
            await asyncio.sleep(0)
        assert not connections.given_up

    asked(server, use)


def test_what_is_not_acknowledged_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other end takes nothing in (here its buffer is full): the kernel closes the connection,
    and its request is not counted any longer."""
    monkeypatch.setattr(http_connections, "GONE_S", 1)

    async def use(address: str) -> None:
        connections = Connections(address)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connections.ask(ASK + bytes(1 << 24))
        assert connections.given_up
        while connections.given_up:
            await asyncio.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as full:
        host, port = full.getsockname()
        asyncio.run(asyncio.wait_for(use(f"{host}:{port}"), PATIENT_S))


def test_the_kernel_asks_on_a_connection_on_which_nothing_comes() -> None:
    """Its keepalive timer runs while the connection is idle, for seconds and not for hours."""

    async def timer(address: str) -> list[int]:
        connections = Connections(address)
        await text(connections)
        ends_with = f":{int(address.rpartition(':')[2]):04X}"
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        connections.close()
        (of_ours,) = [words[5] for words in sockets if words[2].endswith(ends_with)]
        return [int(part, 16) for part in of_ours.split(":")]

    which, ticks = ToldServer(answer(b"")).asked(timer)
    assert which == 2, "keepalive, in Linux's proc_net_tcp"
    assert ticks <= http_connections.PROBES[socket.TCP_KEEPIDLE] * os.sysconf("SC_CLK_TCK")


def test_connections_that_are_closed_begin_nothing() -> None:
    """What is under way fails, though on a connection that ends it is asked anew else."""
    server = ToldServer(answer(b"first"), answer(b"second"))

    async def use(connections: Connections) -> None:
        await text(connections)
        server.may_answer.clear()
        asking = asyncio.create_task(text(connections))
        while len(server.heads) < 2:
            await asyncio.sleep(0)
        connections.close()
        with pytest.raises(ConnectionError):
            await asking

    asked(server, use)
    assert server.connections == 1
