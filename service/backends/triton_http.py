"""A Triton server asked by HTTP/1.1, over connections of this event loop's own.

A call takes half as long as by gRPC (docs/measurements.md): no thread but the loop's is woken for
it here, and fewer in the server. Tensors travel as they lie, behind a head of JSON. Sources: KServe
open inference protocol, version 2; Triton's extension "binary tensor data".
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import httptools
import msgspec
from tritonclient.utils import np_to_triton_dtype

from engine_build.runtime.packed import PACKED
from engine_build.runtime.tensors import request_tensors
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.shared_memory import Place, Shared
from service.backends.triton_calls import (
    GIVEN_UP_S,
    Buffer,
    CallFailed,
    Content,
    Outputs,
    reason_of,
    too_many,
)
from service.tracing import call_metadata

REASONS = {400: "rejected", 404: "model_missing", 503: "unavailable"}
HEAD_LENGTH = b"inference-header-content-length"
"""Header that says where the JSON ends and the tensors begin."""


class _Lengths(msgspec.Struct):
    binary_data_size: int


class _Output(msgspec.Struct):
    name: str
    parameters: _Lengths


class _Answer(msgspec.Struct):
    outputs: list[_Output]


class _Problem(msgspec.Struct):
    error: str


_answer, _problem = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Problem)


class Body(NamedTuple):
    """Of a request: JSON, and the tensors' bytes."""

    head: bytes
    tensors: Sequence[Buffer]
    size: int
    """Bytes of all tensors."""


class HttpForm:
    """Requests to model `name`, an engine of `config`. `packed`: as one tensor, where the model
    takes that."""

    def __init__(self, name: str, config: PackageConfig, packed: bool):
        named = [(s.name, np_to_triton_dtype(s.dtype)) for s in request_tensors(config.features)]
        self._inputs = [(PACKED, "UINT8")] if packed else named
        outputs = [{"name": t, "parameters": {"binary_data": True}} for t in config.model.tasks]
        self._outputs = msgspec.Raw(msgspec.json.encode(outputs))
        self.path = f"/v2/models/{name}/infer"

    def request(self, batch: PackedBatch, left_s: float, places: Shared) -> Body:
        """One request with `left_s` seconds left; the tensors that have places lie there."""
        inputs: list[dict[str, Any]] = []
        tensors: list[Buffer] = []
        size = 0
        for name, datatype in self._inputs:
            buffers, count, nbytes = Content.of(batch, name)
            place = places.get(name)
            if place is None:
                tensors += buffers
                size += nbytes
            parameters = {"binary_data_size": nbytes} if place is None else _told(place)
            inputs.append(
                {"name": name, "datatype": datatype, "shape": (1, count), "parameters": parameters}
            )
        # After so many microseconds Triton drops it from the queue: nobody would read the answer.
        parameters = {"timeout": max(1, int(1e6 * left_s))}
        head = {"parameters": parameters, "inputs": inputs, "outputs": self._outputs}
        return Body(msgspec.json.encode(head), tensors, size)


def _told(place: Place) -> dict[str, Any]:
    return {
        "shared_memory_region": place.region,
        "shared_memory_offset": place.start,
        "shared_memory_byte_size": place.size,
    }


class HttpCalls:
    """Requests of `form` to `host:port`, one at a time on each of as many connections as needed.

    With `most_given_up` requests there that nobody waits for any more, more are refused.
    """

    def __init__(self, address: str, form: HttpForm, most_given_up: int):
        self._form, self._most_given_up = form, most_given_up
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._common = (
            f"POST {form.path} HTTP/1.1\r\nhost: {address}\r\n"
            f"content-type: application/octet-stream\r\n{HEAD_LENGTH.decode()}: "
        )
        self.idle: list[_Connection] = []
        """Connections that wait for nothing, the last used last: that is warm."""
        self.open: set[_Connection] = set()
        self.given_up: dict[_Connection, asyncio.TimerHandle] = {}
        """Connections whose answer nobody waits for, and when they are closed."""
        self._closed = False

    async def infer(self, batch: PackedBatch, left_s: float, places: Shared) -> Outputs:
        """As of Calls."""
        if len(self.given_up) >= self._most_given_up:
            raise too_many(len(self.given_up))
        body = self._form.request(batch, left_s, places)
        more = "".join(f"{name}: {value}\r\n" for name, value in call_metadata())
        head = (
            f"{self._common}{len(body.head)}\r\n"
            f"content-length: {len(body.head) + body.size}\r\n{more}\r\n"
        )
        reply = await self._ask(b"".join([head.encode(), body.head, *body.tensors]))
        try:
            if reply.status == 200:
                return reply.outputs()
            failure = reply.failure()
        except (msgspec.DecodeError, ValueError) as error:
            failure = CallFailed("error", f"HTTP {reply.status}, not as agreed: {error}")
        raise failure

    async def _ask(self, message: bytes) -> "_Reply":
        while self.idle:
            try:
                return await self.idle.pop().ask(message)
            except ConnectionError:
                continue  # the server ended it while it was idle, or has gone: a new one will tell
        if self._closed:
            raise CallFailed("unavailable", "closed")
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), self._host, self._port
            )
            return await connection.ask(message)
        except OSError as error:
            raise CallFailed("unavailable", str(error)) from error

    def close(self) -> None:
        """As of Calls."""
        self._closed = True
        for connection in [*self.open]:
            connection.close()


class _Reply(NamedTuple):
    status: int
    head_length: int | None
    body: bytes

    def outputs(self) -> Outputs:
        """Raises ValueError where lengths disagree."""
        start = len(self.body) if self.head_length is None else self.head_length
        outputs: dict[str, bytes] = {}
        for output in _answer.decode(self.body[:start]).outputs:
            end = start + output.parameters.binary_data_size
            outputs[output.name] = self.body[start:end]
            start = end
        if start != len(self.body):
            raise ValueError(f"{len(self.body)} bytes, {start} told of")
        return outputs

    def failure(self) -> CallFailed:
        """Of another status than 200, the reason by it and by Triton's words."""
        detail = _problem.decode(self.body).error
        reason = reason_of(detail) or REASONS.get(self.status, "error")
        return CallFailed(reason, f"HTTP {self.status}: {detail}")


class _Connection(asyncio.Protocol):
    """A connection of `calls`. Parser callbacks are `on_*`."""

    def __init__(self, calls: HttpCalls):
        self._calls = calls
        self._transport: Any = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[_Reply] | None = None
        self._head_length: int | None = None
        self._chunks: list[bytes] = []

    async def ask(self, message: bytes) -> _Reply:
        """The answer to a whole request. Raises ConnectionError where the connection ends first."""
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._head_length, self._chunks = None, []
        self._transport.write(message)
        try:
            return await self._answer
        except asyncio.CancelledError:
            if self._answer is not None:
                self._calls.given_up[self] = loop.call_later(GIVEN_UP_S, self.close)
            raise

    def close(self) -> None:
        """End it with whatever is under way on it."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = transport
        self._calls.open.add(self)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ConnectionError(f"not HTTP: {error}"))
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == HEAD_LENGTH:
            self._head_length = int(value)

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        status, again = self._parser.get_status_code(), self._parser.should_keep_alive()
        if again and self._answer is not None:  # not what nobody asked for
            self._calls.idle.append(self)
        else:
            self.close()
        self._end(_Reply(status, self._head_length, b"".join(self._chunks)))

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's."""
        self._calls.open.discard(self)
        if self in self._calls.idle:
            self._calls.idle.remove(self)
        self._end(ConnectionError("the connection ended before an answer"))

    def _end(self, result: _Reply | ConnectionError) -> None:
        """Of the request that is under way, if one is: tell whoever still waits."""
        answer, self._answer = self._answer, None
        if timer := self._calls.given_up.pop(self, None):
            timer.cancel()
        if answer is None or answer.done():
            return
        if isinstance(result, _Reply):
            answer.set_result(result)
        else:
            answer.set_exception(result)
