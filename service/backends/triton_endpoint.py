"""One Triton server and one engine on it: a reused channel, and what each failure means."""

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.shared_memory import SharedSlots, Slot
from service.backends.triton_request import RequestForm
from service.breaker import Breaker
from service.deadline import Deadline
from service.errors import DependencyFailed
from service.ranking import Floats
from service.tracing import call_metadata

log = logging.getLogger("mtgr")

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

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
# gRPC 1.85's event engine reads an answer in a thread of a pool, which wakes the one that wakes the
# event loop: a call is ten changes of threads in place of six, and takes a tenth more CPU.

INFER = "/inference.GRPCInferenceService/ModelInfer"

CONTROL_S = 5.0
"""Longest wait for an answer that needs no engine, seconds."""

ABANDONED_S = 60.0
"""How much longer than its caller a request in shared memory is waited for."""


class Endpoint:
    """A server at `host:port`, asked for model `name`, an engine of `config`."""

    def __init__(
        self,
        address: str,
        name: str,
        config: PackageConfig,
        slots: SharedSlots | None,
        breaker: Breaker,
    ):
        self.address, self.name, self.config, self.breaker = address, name, config, breaker
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL)
        self.stub: Any = GRPCInferenceServiceStub(self._channel)
        # Its requests come in bytes, as `form` makes them.
        self.infer: Any = self._channel.unary_unary(
            INFER, response_deserializer=pb.ModelInferResponse.FromString
        )
        self.form = RequestForm(name, config, packed=False)
        self._slots = slots
        self.shares_memory = False
        """Whether the server has mapped our slots; it does not where it is on another host."""

    async def score(self, batch: PackedBatch, deadline: Deadline) -> Mapping[str, Floats]:
        """Probability [K] by task of one request. Raises DependencyFailed("triton", reason):
        timeout, queue_full, model_missing, unavailable, rejected, error or invalid_scores."""
        slot = None
        try:
            # gRPC's own clock tells of the end up to 7 ms after it, the event loop's within 2.
            with deadline.bound("triton"):
                slot = self._slots.put(batch) if self._slots and self.shares_memory else None
                if slot is None:
                    request = self.form.request(batch, deadline.left(), {})
                    answer = await self.infer(
                        request, timeout=deadline.left(), metadata=call_metadata()
                    )
                else:
                    answer = await self._infer_shared(batch, deadline, slot)
        except grpc.aio.AioRpcError as error:
            if slot is not None and "shared memory region" in (error.details() or ""):
                log.warning("%s: forgot the shared memory; sending by gRPC", self.address)
                self.shares_memory = False
                return await self.score(batch, deadline)
            raise DependencyFailed("triton", reason_of(error)) from error
        return self._scores(answer, batch.candidates)

    async def _infer_shared(self, batch: PackedBatch, deadline: Deadline, slot: Slot) -> Any:
        """Whoever gives up meanwhile leaves the slot to the server until it has answered."""
        request = self.form.request(batch, deadline.left(), slot.places(batch))

        async def infer() -> Any:
            try:
                answer = await self.infer(
                    request, timeout=deadline.left() + ABANDONED_S, metadata=call_metadata()
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    log.error("%s: never answered; its slot may still be read: lost", self.address)
                else:
                    slot.release()
                raise
            slot.release()
            return answer

        running = asyncio.ensure_future(infer())
        running.add_done_callback(_heard)
        return await asyncio.shield(running)

    def _scores(self, answer: Any, candidates: int) -> Mapping[str, Floats]:
        scores = {
            output.name: np.frombuffer(content, np.float32)
            for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }
        for values in scores.values():
            if values.shape != (candidates,) or not np.isfinite(values).all():
                raise DependencyFailed("triton", "invalid_scores")
        return scores

    async def share_memory(self) -> None:
        """Have the server map our slots; without, requests go by gRPC."""
        if self._slots is None:
            return
        region = pb.SystemSharedMemoryRegisterRequest(
            name=self._slots.name, key=f"/{self._slots.name}", byte_size=self._slots.size
        )
        try:
            await self.stub.SystemSharedMemoryRegister(region, timeout=CONTROL_S)
        except grpc.aio.AioRpcError as error:
            known = error.code() is grpc.StatusCode.ALREADY_EXISTS
            self.shares_memory = known
            if not known:
                log.warning("%s: cannot share memory: %s", self.address, error.details())
        else:
            self.shares_memory = True

    async def close(self) -> None:
        """Forget the shared memory and end the connection."""
        await self._channel.close()


def _heard(abandoned: asyncio.Future[Any]) -> None:
    """Its failure has been counted as a timeout already; asyncio would log it again."""
    if not abandoned.cancelled():
        abandoned.exception()


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The fixed word for a failed call; Triton's queue says why in words only."""
    code, detail = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or "timeout expired" in detail:
        return "timeout"
    if "maximum queue size" in detail:
        return "queue_full"
    if code is grpc.StatusCode.NOT_FOUND or "unknown model" in detail:
        return "model_missing"
    if code is grpc.StatusCode.UNAVAILABLE:
        return "unavailable"
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return "rejected"
    return "error"
