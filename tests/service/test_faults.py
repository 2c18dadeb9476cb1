"""A few faults of `tests.bench.faults`, briefly: every request has an explained outcome."""

from tests.bench.fault_table import Load, table
from tests.bench.faults import BUSY, ENGINE_FAULTS, GATEWAY_FAULTS, REDIS_FAULTS

QUICK = (
    "redis frozen",
    "redis reset",
    "redis garbage",
    "redis out of memory",
    "engine frozen",
    "clock an hour back",
)


def test_every_request_through_a_fault_has_an_explained_outcome() -> None:
    """Answered, or degraded or refused for the fault's reason; whole again in the end."""
    every = REDIS_FAULTS + ENGINE_FAULTS + GATEWAY_FAULTS
    faults = [fault for fault in every if fault.name in QUICK]
    # A busy machine may be slow to answer, for Redis as for us.
    also = frozenset(BUSY | {"features_timeout", "features_remembered"})
    patient = Load(0.5, 1.0, 1.0, per_s=15, deadline_ms=4000, also=also)
    rows = table(faults, patient)
    assert [row.fault for row in rows] == [fault.name for fault in faults]
    for row in rows:
        assert not row.unexplained, row
        assert sum(row.outcomes.values()) > patient.per_s
    assert any(row.outcomes["degraded"] for row in rows)
