"""Callers that hold connections, flood them or lie in them: a bounded answer, then an end.

Everything goes over plain sockets: no HTTP client would send it.
"""

import gzip
import json
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import msgspec
import pytest

from service.http.connection import MAX_PIPELINED
from tests.service.world import SCHEMA, opener, request, running, settings

BODY = msgspec.json.encode(request(2))
MSGPACK = "application/msgpack"
HEAD = "POST /v1/rank HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def strict(redis_url: str) -> Iterator[httpx.Client]:
    """A gateway in a hurry, with small limits."""
    config = settings(redis_url, read_timeout_ms=400, keep_alive_s=1, max_body_bytes=1 << 20)
    with running(config, opener(SCHEMA)) as client:
        yield client


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    """A plain connection to the client's gateway."""
    address = (client.base_url.host, client.base_url.port or 0)
    with socket.create_connection(address, timeout=20) as raw:
        yield raw


def whole(body: bytes, media: str = "application/json", more: str = "") -> bytes:
    """A request with its length."""
    return (
        f"{HEAD}content-type: {media}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body
    )


def until_closed(raw: socket.socket) -> bytes:
    """Whatever comes until the gateway ends the connection."""
    parts = []
    while True:
        try:
            part = raw.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and error type of the one answer that came."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["type"]


def counted(client: httpx.Client, metric: str) -> float:
    """Sum of a metric's samples."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(metric)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize(
    "start",
    [
        b"POST /v1/rank HTTP/1.1\r\nhost",
        whole(BODY)[:-7],
        f"{HEAD}transfer-encoding: chunked\r\n\r\n5\r\n".encode(),
    ],
    ids=["head", "body", "chunks"],
)
def test_a_request_that_trickles_in_is_refused(strict: httpx.Client, start: bytes) -> None:
    """A slow-loris gets 408 and its connection ends."""
    with connected(strict) as raw:
        raw.sendall(start)
        assert refusal(until_closed(raw)) == (408, "too_slow")


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"], ids=["nothing", "blank lines"])
def test_a_silent_connection_ends(strict: httpx.Client, sent: bytes) -> None:
    """Nobody keeps a connection by saying nothing."""
    with connected(strict) as raw:
        raw.sendall(sent)
        assert until_closed(raw) == b""


def flood(first: bytes, more: bytes) -> Any:
    """`first`, then `more` for ever, until the gateway has had enough."""

    def send(raw: socket.socket) -> bytes:
        raw.sendall(first)
        try:
            for _ in range(1 << 14):
                raw.sendall(more)
        except OSError:
            pass
        else:
            pytest.fail("it read everything")
        return until_closed(raw)

    return send


@pytest.mark.parametrize(
    ("send", "status"),
    [
        (flood(f"{HEAD}x: ".encode(), b"y" * 4096), 431),
        (flood(b"POST /", b"y" * 4096), 431),
        (flood(HEAD.encode(), b"a: b\r\n" * 512), 431),
        (flood(f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode(), b"1\r\n \r\n" * 4096), 413),
        (
            flood(
                f"{HEAD}transfer-encoding: chunked\r\n\r\n0\r\n".encode(), b"trailer: y\r\n" * 4096
            ),
            413,
        ),
    ],
    ids=["endless header", "endless path", "endless headers", "tiny chunks", "endless trailers"],
)
def test_what_never_ends_is_cut_off(strict: httpx.Client, send: Any, status: int) -> None:
    """The gateway stops reading within its limits, says so, and serves on."""
    before = counted(strict, "process_resident_memory_bytes")
    with connected(strict) as raw:
        answer = send(raw)
    assert not answer or int(answer.split()[1]) in (status, 408)  # a reset may overtake the answer
    assert counted(strict, "process_resident_memory_bytes") - before < 64 << 20
    assert strict.post("/v1/rank", json=request(2)).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"POST /v1/rank HTTP/9.9\r\n\r\n"],
    ids=["TLS", "version"],
)
def test_what_is_no_http_is_said_to_be_none(strict: httpx.Client, sent: bytes) -> None:
    """400 in the one error shape."""
    with connected(strict) as raw:
        raw.sendall(sent)
        assert refusal(until_closed(raw)) == (400, "malformed_http")


def test_pipelined_requests_are_answered_in_order_up_to_a_bound(strict: httpx.Client) -> None:
    """Each answer belongs to the request in its place; a pipeline too deep ends in a close."""
    bodies = [msgspec.json.encode(request(1, request_id=f"r{i}")) for i in range(5)]
    with connected(strict) as raw:
        raw.sendall(b"".join(map(whole, bodies)) + whole(BODY, more="connection: close\r\n"))
        answers = until_closed(raw).split(b"HTTP/1.1 200 OK")[1:]
    assert len(answers) == 6
    assert all(b'"request_id":"r%d"' % i in answer for i, answer in enumerate(answers[:5]))
    with connected(strict) as raw, ThreadPoolExecutor(1) as reading:
        read = reading.submit(until_closed, raw)
        flood(b"", whole(BODY) * 100)(raw)
        answers = read.result().count(b"HTTP/1.1 200 OK")
    assert MAX_PIPELINED < answers < 10_000


def test_a_caller_that_reads_no_answers_is_cut_off(strict: httpx.Client) -> None:
    """Answers nobody reads are not kept."""
    with connected(strict) as raw:
        with suppress(OSError):
            for _ in range(1 << 14):
                raw.sendall(whole(BODY) * 10)
        until_closed(raw)
    assert strict.post("/v1/rank", json=request(2)).status_code == 200


@pytest.mark.parametrize("sent", [whole(BODY), whole(BODY)[:-5]], ids=["whole", "in the body"])
def test_a_half_closed_caller_is_taken_for_gone(strict: httpx.Client, sent: bytes) -> None:
    """The connection ends, nothing stays in flight, and others are served."""
    with connected(strict) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        until_closed(raw)
    while counted(strict, "mtgr_in_flight"):
        pass
    assert strict.post("/v1/rank", json=request(2)).status_code == 200


def bomb(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


HOSTILE = {
    "deep arrays": bomb(100_000),
    "deep maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "array that lies": b"\xdd" + struct.pack(">I", 0xFFFFFFFF),
    "map that lies": b"\xdf" + struct.pack(">I", 0xFFFFFFFF),
    "string that lies": b"\x81\xa7user_id\xdb" + struct.pack(">I", 0xFFFFFFFF) + b"u",
    "bytes that lie": b"\x81\xa7user_id\xc6" + struct.pack(">I", 0x7FFFFFFF) + b"u",
    "huge extension": b"\x81\xa7user_id\xc9" + struct.pack(">Ib", 0xFFFFFFFF, 7),
    "extension": b"\x81\xa7user_id\xc7\x04\x07abcd",
    "timestamp extension": b"\x81\xa7user_id\xd6\xff\x00\x00\x00\x00",
    "reserved byte": b"\xc1",
    "two documents": msgspec.msgpack.encode(request(1)) * 2,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_messagepack_is_malformed(strict: httpx.Client, body: bytes) -> None:
    """Lengths are checked against what is there, depth is bounded, extensions are refused."""
    response = strict.post("/v1/rank", content=body, headers={"content-type": MSGPACK})
    assert response.status_code == 422, response.text
    assert response.json()["error"]["type"] in ("malformed", "wrong_type", "unknown_field")
    assert "Traceback" not in response.text


def test_a_million_candidates_are_refused_by_their_number(strict: httpx.Client) -> None:
    """Before anything is made of them."""
    columns = {"item_id": {"dtype": "u1", "data": b"\0" * 1_000_000}, "features": {}}
    body = msgspec.msgpack.encode(request(1, candidates=columns))
    response = strict.post("/v1/rank", content=body, headers={"content-type": MSGPACK})
    assert (response.status_code, response.json()["error"]["type"]) in (
        (422, "invalid_value"),
        (422, "missing"),
    )


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "gzip, identity", "x"])
def test_a_compressed_bomb_is_not_opened(strict: httpx.Client, encoding: str) -> None:
    """No Content-Encoding is read: a small body stays small."""
    body = gzip.compress(b" " * (1 << 20))
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    response = strict.post("/v1/rank", content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (415, "unsupported_media")


def test_ids_forge_no_header_and_no_label(strict: httpx.Client) -> None:
    """What a caller names is data in the body of the answer, and nowhere else."""
    forged = 'r"}\r\nx-evil: 1\r\n\r\n\x1b[31m'
    response = strict.post("/v1/rank", json=request(1, request_id=forged, user_id=forged + "u"))
    assert response.status_code == 200
    assert response.json()["request_id"] == forged
    assert "x-evil" not in response.headers
    assert "evil" not in strict.get("/metrics").text


def test_more_connections_than_allowed_are_refused(redis_url: str) -> None:
    """The one too many gets 503 with a time to come back; the others are served."""
    config = settings(redis_url, max_connections=3)
    with running(config, opener(SCHEMA)) as client, connected(client), connected(client):
        assert client.get("/health/live").status_code == 200
        with connected(client) as raw:
            assert refusal(until_closed(raw)) == (429, "overloaded")
        assert client.get("/health/live").status_code == 200
