"""A gateway that is told to end finishes what it has accepted."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from tests.service.gateway_process import gateway_process, hold, process_id
from tests.service.world import request

CALLERS = 24
BODY = msgspec.json.encode(request(40, deadline_ms=20_000))
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\nx-envoy-expected-rq-timeout-ms: 20000\r\n"
RANK = HEAD + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
READY = b"GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n"


@dataclass
class Load:
    """What callers with open connections saw."""

    answered: int = 0
    statuses: set[int] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    enough: asyncio.Event = field(default_factory=asyncio.Event)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes
) -> tuple[int, bool]:
    """Status of the answer, and whether the connection ends with it."""
    writer.write(message)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(h for h in head.split("\r\n") if h.startswith("content-length"))
    await reader.readexactly(int(length.split(":")[1]))
    return int(head.split(" ")[1]), "\r\nconnection: close" in head


async def call(port: int, load: Load) -> None:
    """Request after request until nobody listens; a request without an answer is lost."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        closing = False
        while not closing:
            try:
                status, closing = await ask(reader, writer, RANK)
            except (OSError, EOFError) as error:
                load.lost.append(repr(error))
                return
            load.statuses.add(status)
            load.answered += 1
            if load.answered > 20 * CALLERS:
                load.enough.set()
        writer.close()


async def end_under_load(
    port: int, end: Callable[[], None], ended: Callable[[], None]
) -> tuple[Load, int, list[int]]:
    """The load, its answers before the end, and readiness from the signal on until it is lost;
    `ended` is called once a worker that was ready has closed its connections."""
    load = Load()
    watcher = await asyncio.open_connection("127.0.0.1", port)
    assert await ask(*watcher, READY) == (200, False)
    callers = [asyncio.create_task(call(port, load)) for _ in range(CALLERS)]
    await load.enough.wait()
    before = load.answered
    end()
    ready = [(await ask(*watcher, READY))[0]]
    while ready[-1] == 200:
        ready.append((await ask(*watcher, READY))[0])
    await watcher[0].read()
    ended()
    await asyncio.gather(*callers)
    watcher[1].close()
    return load, before, ready


@pytest.mark.parametrize(("workers", "held"), [(1, False), (2, False), (2, True)])
def test_what_was_accepted_is_answered_before_the_end(
    workers: int, held: bool, tmp_path: Path
) -> None:
    """SIGTERM under load: not ready at once (of several workers: once they are told), every request
    on a connection is answered with 200, nobody else gets in, and the exit status is 0; also while
    another worker is still loading, and is the last to hear of the end."""
    file = tmp_path / "settings.toml"
    file.write_text(f"workers = {workers}")
    with tempfile.TemporaryDirectory(prefix="mtgr-") as name, ExitStack() as stack:
        directory = Path(name)
        if held:
            hold(directory, workers - 1).touch()
        client, process = stack.enter_context(gateway_process(directory, file))
        port = client.base_url.port or 0
        late = process_id(directory, workers - 1) if held else None

        def end() -> None:
            if late is not None:
                os.kill(late, signal.SIGSTOP)
            process.terminate()

        def ended() -> None:
            if late is not None:
                hold(directory, workers - 1).unlink()
                os.kill(late, signal.SIGCONT)

        load, before, ready = asyncio.run(end_under_load(port, end, ended))
        assert process.wait(30) == 0
    assert load.lost == []
    assert load.statuses == {200}
    assert load.answered >= before + CALLERS / 2  # requests were under way when it was told
    assert ready[-1] == 503
    assert workers > 1 or len(ready) == 1
