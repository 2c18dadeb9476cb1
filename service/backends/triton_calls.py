"""How a Triton server is asked to score a request: one seam, by gRPC or by HTTP."""

from collections.abc import Mapping
from typing import Protocol

from model_def.batch import PackedBatch
from service.backends.shared_memory import Shared

Outputs = Mapping[str, bytes]
"""Values by output, float32 each."""


class CallFailed(Exception):
    """No answer. `reason`: timeout, queue_full, model_missing, unavailable, rejected or error."""

    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class Calls(Protocol):
    """Requests of one model to one server."""

    async def infer(self, batch: PackedBatch, left_s: float, places: Shared) -> Outputs:
        """The model's outputs for a request that has `left_s` seconds left in the server's queue;
        the tensors that have places lie there. The caller gives up by cancelling. Raises
        CallFailed."""

    def close(self) -> None:
        """End the connections."""


def reason_of(detail: str) -> str | None:
    """The fixed word for what only Triton's words tell."""
    if "timeout expired" in detail:
        return "timeout"
    if "maximum queue size" in detail:
        return "queue_full"
    if "unknown model" in detail:
        return "model_missing"
    return None
