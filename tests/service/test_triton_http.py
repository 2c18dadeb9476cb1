"""What is sent by HTTP is what Triton's protocol says, and what an answer or a refusal says is
read."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_build.requests import random_request
from engine_build.runtime.packed import PACKED, packed_tensor
from engine_build.runtime.tensors import request_tensors
from model_def.config import PRESETS, PackageConfig
from service.backends import triton_http
from service.backends.shared_memory import Place
from service.backends.triton_calls import CallFailed
from service.backends.triton_http import HttpCalls, HttpForm
from tests.model_def.cases import SCHEMA
from tests.service.told_server import ToldServer

CONFIG = PackageConfig(version="v", model=PRESETS["tiny"], features=SCHEMA)
FORM = HttpForm("model", CONFIG, packed=True)
BATCH = random_request(SCHEMA, np.random.default_rng(0), 3, 2, 4)
sizes = st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(1, 2000))


@settings(deadline=None)
@pytest.mark.parametrize("packed", [True, False])
@given(size=sizes, left_s=st.floats(0, 10))
def test_the_body_tells_where_each_tensor_is(
    packed: bool, size: tuple[int, int, int], left_s: float
) -> None:
    """A server that cuts the bytes by the lengths in the JSON has every tensor whole."""
    batch = random_request(SCHEMA, np.random.default_rng(0), *size)
    body = HttpForm("model", CONFIG, packed).request(batch, left_s, {})
    head, tensors = json.loads(body.head), b"".join(body.tensors)
    lengths = [tensor["parameters"]["binary_data_size"] for tensor in head["inputs"]]
    cut = [tensors[begin:end] for begin, end in pairwise([0, *accumulate(lengths)])]
    whole = {PACKED: packed_tensor(batch)}
    expected = whole if packed else {s.name: batch.arrays[s.name] for s in request_tensors(SCHEMA)}
    assert [tensor["name"] for tensor in head["inputs"]] == [*expected]
    assert [tensor["shape"] for tensor in head["inputs"]] == [
        [1, len(e)] for e in expected.values()
    ]
    assert cut == [array.tobytes() for array in expected.values()]
    assert body.size == len(tensors) == sum(lengths)
    assert [output["name"] for output in head["outputs"]] == [*CONFIG.model.tasks]
    assert head["parameters"]["timeout"] == max(1, int(1e6 * left_s))


def test_what_lies_in_shared_memory_is_not_sent() -> None:
    """Of a tensor with a place the JSON tells where it is."""
    body = FORM.request(BATCH, 1.0, {PACKED: Place("r", 64, 512)})
    (tensor,) = json.loads(body.head)["inputs"]
    assert (body.size, [*body.tensors]) == (0, [])
    assert tensor["parameters"] == {
        "shared_memory_region": "r",
        "shared_memory_offset": 64,
        "shared_memory_byte_size": 512,
    }


def answer(values: bytes, status: str = "200 OK", told: int | None = None) -> bytes:
    """Triton's answer with one output of these bytes."""
    length = len(values) if told is None else told
    output = {"name": "ctr", "datatype": "FP32", "parameters": {"binary_data_size": length}}
    head = json.dumps({"model_name": "model", "outputs": [output]}).encode()
    return (
        f"HTTP/1.1 {status}\r\nInference-Header-Content-Length: {len(head)}\r\n"
        f"Content-Length: {len(head) + len(values)}\r\n\r\n"
    ).encode() + head + values  # fmt: skip


def refusal(status: str, text: str) -> bytes:
    """Triton's answer where it refuses."""
    body = json.dumps({"error": text}).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def asked(server: ToldServer, use: Callable[[HttpCalls], Awaitable[Any]], most: int = 8) -> Any:
    """What `use` gives of calls to the server."""

    async def run(address: str) -> Any:
        calls = HttpCalls(address, FORM, most)
        try:
            return await use(calls)
        finally:
            calls.close()

    return server.asked(run)


async def infer(calls: HttpCalls) -> Any:
    """The outputs of a request."""
    return await calls.infer(BATCH, 1.0, {})


def failed(*answers: bytes | None) -> CallFailed:
    """How a request with these answers fails."""
    with pytest.raises(CallFailed) as failure:
        asked(ToldServer(*answers), infer)
    return failure.value


def test_no_more_is_given_up_than_may_be() -> None:
    """Until the server has answered, more are refused without a call."""
    server = ToldServer(answer(b"late"), answer(b"next"))

    async def use(calls: HttpCalls) -> Any:
        server.may_answer.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await infer(calls)
        with pytest.raises(CallFailed, match="queue_full"):
            await infer(calls)
        server.may_answer.set()
        while calls.connections.given_up:
            await asyncio.sleep(0)
        return await infer(calls)

    assert asked(server, use, most=1) == {"ctr": b"next"}
    assert len(server.heads) == 2


def test_the_trace_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a header, where the request has one."""
    server = ToldServer(answer(b"1234"), answer(b"1234"))

    async def traced(calls: HttpCalls) -> None:
        await infer(calls)
        monkeypatch.setattr(triton_http, "call_metadata", lambda: (("traceparent", "00-1-2-01"),))
        await infer(calls)

    asked(server, traced)
    assert ["\r\ntraceparent: 00-1-2-01\r\n" in head.decode() for head in server.heads] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        ("404 Not Found", "Request for unknown model: 'm' is not found", "model_missing"),
        ("400 Bad Request", "Request for unknown model: 'm' has no versions", "model_missing"),
        ("503 Service Unavailable", "[m] Exceeds maximum queue size", "queue_full"),
        ("503 Service Unavailable", "Request timeout expired", "timeout"),
        ("503 Service Unavailable", "Server not ready", "unavailable"),
        ("400 Bad Request", "unexpected shape", "rejected"),
        ("500 Internal Server Error", "the model raised", "error"),
    ],
)
def test_a_refusal_has_its_reason(status: str, text: str, reason: str) -> None:
    """By Triton's status and words, which are kept."""
    failure = failed(refusal(status, text))
    assert failure.reason == reason
    assert text in failure.detail


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"1234", told=8),
        answer(b"1234", told=0),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops",
    ],
    ids=["too short", "too long", "another document", "a proxy's"],
)
def test_an_answer_that_is_not_tritons_is_an_error(reply: bytes) -> None:
    """It is not taken for scores."""
    assert failed(reply).reason == "error"


@pytest.mark.parametrize("reply", [None, b"SSH-2.0-OpenSSH_9.6\r\n"], ids=["ended", "not HTTP"])
def test_a_connection_that_gives_no_answer_is_unavailable(reply: bytes | None) -> None:
    """As is a server that cannot be reached."""
    assert failed(reply).reason == "unavailable"
