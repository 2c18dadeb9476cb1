"""A Triton server asked by gRPC: prebuilt requests on a reused channel.

A message that follows another on the wire is merged with it (protobuf's encoding guide, "Last One
Wins"), so the tensors' bytes are joined to it as they lie: protobuf would copy them twice more.
"""

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import np_to_triton_dtype

from engine_build.runtime.packed import PACKED
from engine_build.runtime.tensors import request_tensors
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.shared_memory import Shared
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

CHANNEL = [
    # A server that is started again is found again within a second, not two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Channels of one address would share a connection otherwise, and its backoff.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]

PINGS = [
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
]
"""TCP tells nobody that the other end has gone without a word; a ping that is not answered does."""

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
# gRPC 1.85's event engine reads an answer in a thread of a pool, which wakes the one that wakes the
# event loop: a call is ten changes of threads in place of six, and takes a tenth more CPU.

INFER = "/inference.GRPCInferenceService/ModelInfer"

REASONS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.NOT_FOUND: "model_missing",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.INVALID_ARGUMENT: "rejected",
}

RAW_INPUT = bytes([pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
"""What introduces an element of `raw_input_contents`: its field, and that its length follows."""


def channel(address: str) -> grpc.aio.Channel:
    """A channel to `host:port` that is found again soon after its server was gone."""
    return grpc.aio.insecure_channel(address, options=CHANNEL + PINGS)


class GrpcCalls:
    """Requests of `form` on a channel, which is its owner's to close.

    With `most_given_up` requests there that nobody waits for any more, more are refused.
    """

    def __init__(self, channel: grpc.aio.Channel, form: "GrpcForm", most_given_up: int):
        self._form, self._most_given_up = form, most_given_up
        self._given_up = 0
        # Requests come in bytes, as the form makes them.
        self._infer: Any = channel.unary_unary(
            INFER, response_deserializer=pb.ModelInferResponse.FromString
        )

    async def infer(self, batch: PackedBatch, left_s: float, places: Shared) -> Outputs:
        """As of Calls."""
        if self._given_up >= self._most_given_up:
            raise too_many(self._given_up)
        request = self._form.request(batch, left_s, places)
        call = self._infer(request, timeout=left_s + GIVEN_UP_S, metadata=call_metadata())
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call.add_done_callback(partial(_tell, ended))
        try:
            await ended  # to be cancelled while waiting for the call itself would cancel it
        except asyncio.CancelledError:
            self._given_up += 1
            call.add_done_callback(self._forget)
            raise
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error
        return {
            output.name: content
            for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }

    def _forget(self, ended: object) -> None:
        self._given_up -= 1

    def close(self) -> None:
        """Nothing: the channel is its owner's."""


def _tell(waiting: asyncio.Future[None], ended: object) -> None:
    if not waiting.done():
        waiting.set_result(None)


def failure(error: grpc.aio.AioRpcError) -> CallFailed:
    """What a failed call was."""
    code, detail = error.code(), error.details() or ""
    reason = reason_of(detail) or REASONS.get(code, "error")
    return CallFailed(reason, f"{code.name}: {detail}")


class GrpcForm:
    """For model `name`, an engine of `config`. `packed`: as one tensor, where the model takes that;
    a call then costs a quarter less."""

    def __init__(self, name: str, config: PackageConfig, packed: bool):
        inputs = [
            {"name": spec.name, "datatype": np_to_triton_dtype(spec.dtype)}
            for spec in request_tensors(config.features)
        ]
        self._template = pb.ModelInferRequest(
            model_name=name,
            inputs=[{"name": PACKED, "datatype": "UINT8"}] if packed else inputs,
            outputs=[{"name": task} for task in config.model.tasks],
        )

    def request(self, batch: PackedBatch, left_s: float, places: Shared) -> bytes:
        """The message of one request with `left_s` seconds left; the tensors that have places lie
        there."""
        request = pb.ModelInferRequest()
        request.CopyFrom(self._template)
        # After so many microseconds Triton drops it from the queue: nobody would read the answer.
        request.parameters["timeout"].int64_param = max(1, int(1e6 * left_s))
        contents: list[Buffer] = []
        for tensor in request.inputs:
            name = tensor.name
            place = places.get(name)
            buffers, count, size = Content.of(batch, name)
            tensor.shape.extend((1, count))
            if place is None:
                contents += [RAW_INPUT, varint(size), *buffers]
                continue
            parameters = tensor.parameters
            parameters["shared_memory_region"].string_param = place.region
            parameters["shared_memory_offset"].int64_param = place.start
            parameters["shared_memory_byte_size"].int64_param = place.size
        return b"".join([request.SerializeToString(), *contents])


def varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    return bytes(_sevens(number))


def _sevens(number: int) -> Iterator[int]:
    while number > 127:
        yield number & 127 | 128
        number >>= 7
    yield number
