"""What the head of a ranking request tells, before its body is read."""

from collections.abc import Mapping
from typing import NamedTuple

from service.deadline import Deadline

PATIENCE_HEADER = b"x-envoy-expected-rq-timeout-ms"
"""How long a caller waits, as an Envoy on its way tells."""


class Arrival(NamedTuple):
    """A request that was let in."""

    headers: Mapping[bytes, bytes]
    """By name in lower case."""
    caller: str
    start: float
    """When it came, on the monotonic clock, or earlier."""
    deadline: Deadline
    """As the head tells, or the default."""


def told_patience_ms(headers: Mapping[bytes, bytes]) -> int | None:
    """Of PATIENCE_HEADER; None where it is no number."""
    told = headers.get(PATIENCE_HEADER, b"")
    return int(told) if told.isdigit() and len(told) < 10 else None
