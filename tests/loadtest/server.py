"""A real HTTP server with known behaviour: it delays, stalls, refuses and degrades as told."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import msgspec
import numpy as np
import uvicorn

from loadtest.request import JSON, MSGPACK


@dataclass
class Behaviour:
    """What the server does; the defaults answer at once."""

    delay_s: float = 0.0
    stall_at: int = 0
    """The n-th request; nothing at all is answered for `stall_s` from when it came."""
    stall_s: float = 0.0
    per_second: float | None = None
    """Rate above which it answers 429: a bucket of `bucket` tokens, filled at this rate."""
    bucket: float = 5.0
    degrade_every: int = 0
    """Each n-th answer is degraded."""
    break_every: int = 0
    """Each n-th answer is a 500."""
    hang_up_every: int = 0
    """Each n-th request has its connection closed in place of an answer."""
    wrong_id: bool = False
    hang: bool = False
    """Never answer."""
    seen: list[bytes] = field(default_factory=list)
    """Every body that came."""
    keys: set[str] = field(default_factory=set)
    """Every value of `X-Api-Key` that came."""


class App:
    """The ASGI application."""

    def __init__(self, behaviour: Behaviour):
        self.behaviour = behaviour
        self._count = 0
        self._stalled_until = 0.0
        self._tokens, self._last = behaviour.bucket, monotonic()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        status, headers, answer = await self._answer(scope, body)
        if self.behaviour.hang_up_every and self._count % self.behaviour.hang_up_every == 0:
            headers.append((b"content-length", b"1000000"))
            answer = b""  # shorter than it says: the server closes the connection
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, scope: Any, body: bytes) -> tuple[int, list[Any], bytes]:
        told = self.behaviour
        told.seen.append(body)
        told.keys |= {value.decode() for name, value in scope["headers"] if name == b"x-api-key"}
        self._count += 1
        if self._count == told.stall_at:
            self._stalled_until = monotonic() + told.stall_s
        if told.hang:
            await asyncio.Event().wait()
        while (left := self._stalled_until - monotonic()) > 0:
            await asyncio.sleep(left)
        await asyncio.sleep(told.delay_s)
        json_type = [(b"content-type", b"application/json")]
        try:
            wanted, request_id = _read(dict(scope["headers"]), body)
        except _Unreadable as unreadable:
            return unreadable.status, json_type, b'{"error": {"type": "invalid_value"}}'
        if told.per_second is not None and not self._admit(told.per_second):
            headers = [*json_type, (b"retry-after", b"1")]
            return 429, headers, b'{"error": {"type": "overloaded"}}'
        if told.break_every and self._count % told.break_every == 0:
            return 500, json_type, b'{"error": {"type": "internal"}}'
        degraded = bool(told.degrade_every) and self._count % told.degrade_every == 0
        answer = {
            "request_id": "another" if told.wrong_id else request_id,
            "degraded": degraded,
            "reason": "redis_timeout" if degraded else None,
            "items": [{"item_id": i} for i in range(wanted)],
        }
        headers = [
            (b"content-type", b"application/msgpack"),
            (b"server-timing", b"decode;dur=0.250, backend;dur=1.500, total;dur=1.750"),
        ]
        return 200, headers, msgspec.msgpack.encode(answer)

    def _admit(self, per_second: float) -> bool:
        now = monotonic()
        self._tokens = min(self.behaviour.bucket, self._tokens + (now - self._last) * per_second)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Unreadable(Exception):
    def __init__(self, status: int):
        self.status = status


FIELDS = {"user_id", "candidates", "request_id", "top_k", "deadline_ms", "context"}


def _read(headers: dict[bytes, bytes], body: bytes) -> tuple[int, str]:
    """(items to answer, request id); refuses what the API refuses, no more and no less."""
    media = headers[b"content-type"].decode()
    if b"content-encoding" in headers or media not in (JSON, MSGPACK):
        raise _Unreadable(415)
    try:
        document = (msgspec.json if media == JSON else msgspec.msgpack).decode(body)
        candidates = document["candidates"]
        ids = (
            [row["item_id"] for row in candidates]
            if isinstance(candidates, list)
            else candidates["item_id"]
        )
        if isinstance(ids, dict):
            ids = np.frombuffer(ids["data"], ids["dtype"]).tolist()
        assert document.keys() == FIELDS
        assert isinstance(document["top_k"], int)
        assert document["top_k"] > 0 < len(ids) == len(set(ids))
    except (msgspec.DecodeError, KeyError, AssertionError):
        raise _Unreadable(422) from None
    return min(document["top_k"], len(ids)), document["request_id"]


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The URL of a server that behaves so, listening when the block begins."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            App(behaviour), log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
