"""How a Triton server is asked to score a request: one seam, by gRPC or by HTTP.

A request that its caller gives up stays the server's work. By HTTP Triton cannot be told to drop
it; by gRPC it can, and has been seen to crash of it (2.51; triton-inference-server/server #7368,
#8034), which takes every other request along. So it is left to end by itself, and counted: beyond
so many nothing more is sent. A bounded queue of the server's drops it when its time is up.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from engine_build.runtime.packed import HEAD_BYTES, PACKED, packed_head
from model_def.batch import PackedBatch
from service.backends.shared_memory import Shared

Outputs = Mapping[str, bytes]
"""Values by output, float32 each."""

Buffer = bytes | memoryview

GIVEN_UP_S = 60.0
"""How much longer than its caller an answer is waited for."""


class CallFailed(Exception):
    """No answer. `reason`: timeout, queue_full, model_missing, unavailable, rejected or error."""

    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class Calls(Protocol):
    """Requests of one model to one server."""

    async def infer(self, batch: PackedBatch, left_s: float, places: Shared) -> Outputs:
        """The model's outputs for a request that has `left_s` seconds left in the server's queue;
        the tensors that have places lie there. Who gives up cancels the wait, not the request.
        Raises CallFailed."""

    def close(self) -> None:
        """End the connections."""


class Content(NamedTuple):
    """What a tensor of a request holds, as it lies."""

    buffers: Sequence[Buffer]
    elements: int
    nbytes: int

    @classmethod
    def of(cls, batch: PackedBatch, name: str) -> "Content":
        """The batch's array of a name, or all of them as PACKED."""
        if name == PACKED:
            nbytes = HEAD_BYTES + batch.payload_bytes
            return cls((packed_head(batch), batch.buffer.data), nbytes, nbytes)
        array = batch.arrays[name]
        return cls((array.data,), len(array), array.nbytes)


def too_many(given_up: int) -> CallFailed:
    """What a further request gets."""
    return CallFailed("queue_full", f"the server still has {given_up} that were given up")


def reason_of(detail: str) -> str | None:
    """The fixed word for what only Triton's words tell."""
    if "timeout expired" in detail:
        return "timeout"
    if "maximum queue size" in detail:
        return "queue_full"
    if "unknown model" in detail:
        return "model_missing"
    return None
