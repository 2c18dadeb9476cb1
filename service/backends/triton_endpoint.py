"""One Triton server and one engine on it: what is asked of it, and what each failure means."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.shared_memory import SharedSlots, Slot
from service.backends.triton_calls import GIVEN_UP_S, CallFailed, Calls, Outputs
from service.backends.triton_grpc import GrpcCalls, GrpcForm, channel
from service.backends.triton_http import HttpCalls, HttpForm
from service.breaker import Breaker
from service.deadline import Deadline
from service.errors import DependencyFailed
from service.ranking import Floats

log = logging.getLogger("mtgr")

CONTROL_S = 5.0
"""Longest wait for an answer that needs no engine, seconds."""


class Endpoint:
    """A server asked for model `name`, an engine of `config`.

    It is controlled by gRPC at `address` (host:port). Requests go to `http`, another port of the
    same server, where there is one, and by gRPC else. At most `queue` are there of which the caller
    has given up.
    """

    def __init__(
        self,
        address: str,
        http: str | None,
        name: str,
        config: PackageConfig,
        slots: SharedSlots | None,
        breaker: Breaker,
        queue: int = 64,
    ):
        self.address, self.name, self.config, self.breaker = address, name, config, breaker
        self._http, self._queue = http, queue
        self._packed = False
        self._connect()
        self._slots = slots
        self.shares_memory = False
        """Whether the server has mapped our slots; it does not where it is on another host."""

    def _connect(self) -> None:
        self._channel = channel(self.address)
        self.stub: Any = GRPCInferenceServiceStub(self._channel)
        self.calls = self._new_calls()

    async def reconnect(self) -> None:
        """Leave the connections, one of which may hang for as long as TCP lets it."""
        await self.close()
        self._connect()

    def _new_calls(self) -> Calls:
        form = self.name, self.config, self._packed
        if self._http is None:
            return GrpcCalls(self._channel, GrpcForm(*form), self._queue)
        return HttpCalls(self._http, HttpForm(*form), self._queue)

    def send_packed(self, packed: bool) -> None:
        """Send requests as one tensor from now on, where the model takes that, or as named ones."""
        if packed != self._packed:
            self.calls.close()
            self._packed = packed
            self.calls = self._new_calls()

    async def score(self, batch: PackedBatch, deadline: Deadline) -> Mapping[str, Floats]:
        """Probability [K] by task of one request. Raises DependencyFailed("triton", reason): a
        reason of CallFailed, or invalid_scores."""
        slot = None
        try:
            with deadline.bound("triton"):
                slot = self._slots.put(batch) if self._slots and self.shares_memory else None
                if slot is None:
                    outputs = await self.calls.infer(batch, deadline.left(), {})
                else:
                    outputs = await self._infer_shared(batch, deadline, slot)
        except CallFailed as failed:
            if slot is not None and "shared memory region" in failed.detail:
                log.warning("%s: forgot the shared memory; sending the values", self.address)
                self.shares_memory = False
                return await self.score(batch, deadline)
            raise DependencyFailed("triton", failed.reason) from failed
        return _scores(outputs, batch.candidates)

    async def _infer_shared(self, batch: PackedBatch, deadline: Deadline, slot: Slot) -> Outputs:
        """Whoever gives up meanwhile leaves the slot to the server until it has answered."""
        left_s = deadline.left()

        async def infer() -> Outputs:
            try:
                async with asyncio.timeout(left_s + GIVEN_UP_S):
                    outputs = await self.calls.infer(batch, left_s, slot.places(batch))
            except TimeoutError:
                log.error("%s: never answered; its slot may still be read: lost", self.address)
                raise
            except CallFailed:
                slot.release()
                raise
            slot.release()
            return outputs

        running = asyncio.ensure_future(infer())
        running.add_done_callback(_heard)
        return await asyncio.shield(running)

    async def share_memory(self) -> None:
        """Have the server map our slots; without, requests carry their values."""
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
        """End the connections."""
        self.calls.close()
        await self._channel.close()


def _scores(outputs: Outputs, candidates: int) -> Mapping[str, Floats]:
    scores = {}
    for name, content in outputs.items():
        values = np.frombuffer(content, np.float32) if len(content) == 4 * candidates else None
        if values is None or not np.isfinite(values).all():
            raise DependencyFailed("triton", "invalid_scores")
        scores[name] = values
    return scores


def _heard(abandoned: asyncio.Future[Any]) -> None:
    """Its failure has been counted as a timeout already; asyncio would log it again."""
    if not abandoned.cancelled():
        abandoned.exception()
