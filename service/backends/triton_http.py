"""A Triton server asked by HTTP/1.1.

A call takes half as long as by gRPC (docs/measurements.md): no thread but the loop's is woken for
it here, and fewer in the server. Tensors travel as they lie, behind a head of JSON. Sources: KServe
open inference protocol, version 2; Triton's extension "binary tensor data".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from tritonclient.utils import np_to_triton_dtype

from engine_build.runtime.packed import PACKED
from engine_build.runtime.tensors import request_tensors
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.http_connections import Connections, Reply
from service.backends.shared_memory import Place, Shared
from service.backends.triton_calls import (
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
    """Requests of `form` to `host:port`.

    With `most_given_up` requests there that nobody waits for any more, more are refused.
    """

    def __init__(self, address: str, form: HttpForm, most_given_up: int):
        self._form, self._most_given_up = form, most_given_up
        self._common = (
            f"POST {form.path} HTTP/1.1\r\nhost: {address}\r\n"
            f"content-type: application/octet-stream\r\n{HEAD_LENGTH.decode()}: "
        )
        self.connections = Connections(address)

    async def infer(self, batch: PackedBatch, left_s: float, places: Shared) -> Outputs:
        """As of Calls."""
        given_up = len(self.connections.given_up)
        if given_up >= self._most_given_up:
            raise too_many(given_up)
        body = self._form.request(batch, left_s, places)
        more = "".join(f"{name}: {value}\r\n" for name, value in call_metadata())
        head = (
            f"{self._common}{len(body.head)}\r\n"
            f"content-length: {len(body.head) + body.size}\r\n{more}\r\n"
        )
        try:
            reply = await self.connections.ask(b"".join([head.encode(), body.head, *body.tensors]))
        except OSError as error:
            raise CallFailed("unavailable", str(error)) from error
        try:
            if reply.status == 200:
                return _outputs(reply)
            failure = _failure(reply)
        except (msgspec.DecodeError, ValueError) as error:
            failure = CallFailed("error", f"HTTP {reply.status}, not as agreed: {error}")
        raise failure

    def close(self) -> None:
        """As of Calls."""
        self.connections.close()


def _outputs(reply: Reply) -> Outputs:
    """Raises ValueError where lengths disagree."""
    start = int(reply.headers.get(HEAD_LENGTH, len(reply.body)))
    outputs: dict[str, bytes] = {}
    for output in _answer.decode(reply.body[:start]).outputs:
        end = start + output.parameters.binary_data_size
        outputs[output.name] = reply.body[start:end]
        start = end
    if start != len(reply.body):
        raise ValueError(f"{len(reply.body)} bytes, {start} told of")
    return outputs


def _failure(reply: Reply) -> CallFailed:
    """Of another status than 200, the reason by it and by Triton's words."""
    detail = _problem.decode(reply.body).error
    reason = reason_of(detail) or REASONS.get(reply.status, "error")
    return CallFailed(reason, f"HTTP {reply.status}: {detail}")
