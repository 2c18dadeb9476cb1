"""Who connects is taken: many at once, by a worker that others leave to it, after a shortage."""

import asyncio
import errno
import logging
from collections.abc import Callable
from contextlib import ExitStack
from socket import create_connection, create_server, socket
from typing import Any, cast

import pytest
import uvloop

from service.http import listener
from service.http.listener import TAKEN_AT_ONCE, Listener

PATIENCE_S = 20.0


class Greeting(asyncio.Protocol):
    """Says hello."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writing = cast(asyncio.Transport, transport)
        writing.write(b"hello")
        writing.close()


def greeted(
    port: socket, count: int, has_more: Callable[[], bool], *, at_the_end: bool = False
) -> list[bytes]:
    """What so many callers hear who connect before the listener is there, or just before its
    end."""

    async def listen() -> list[bytes]:
        with ExitStack() as stack:
            callers = [
                stack.enter_context(create_connection(port.getsockname(), PATIENCE_S))
                for _ in range(count)
            ]
            own = Listener(port, Greeting, has_more)
            if at_the_end:
                await own.close()
            heard = await asyncio.gather(*[asyncio.to_thread(c.recv, 10) for c in callers])
            if not at_the_end:
                await own.close()
            return heard

    return uvloop.run(listen())


@pytest.mark.parametrize("has_more", [True, False])
def test_all_who_wait_are_taken(has_more: bool) -> None:
    """More at once than a round takes, and where another worker has fewer and takes none too."""
    count = 3 * TAKEN_AT_ONCE
    with create_server(("127.0.0.1", 0), backlog=count) as port:
        assert greeted(port, count, lambda: has_more) == [b"hello"] * count


def test_a_shortage_of_files_passes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the system gives connections again they are taken; the log tells why not before."""

    class Short(socket):
        """A listening socket of a process that has no file left, at first."""

        left = 2

        def accept(self) -> Any:
            if self.left:
                self.left -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(listener, "PAUSE_S", 0.01)
    with create_server(("127.0.0.1", 0)) as port:
        short = Short(fileno=port.detach())
    with short, caplog.at_level(logging.ERROR, "mtgr"):
        assert greeted(short, 2, lambda: False) == [b"hello"] * 2
    assert "Too many open files" in caplog.text


def test_those_who_were_let_in_are_taken_at_the_end() -> None:
    """Closing takes whoever the kernel has let in, though another worker has fewer."""
    with create_server(("127.0.0.1", 0)) as port:
        assert greeted(port, 5, lambda: True, at_the_end=True) == [b"hello"] * 5
