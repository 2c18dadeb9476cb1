"""What a service must do to pass: thresholds on latency and on what was not served."""

from collections.abc import Mapping

import msgspec

from loadtest.outcome import Outcome


class Goal(msgspec.Struct, frozen=True):
    """All of it must hold. Shares are of valid requests, in 0..1."""

    p99_ms: float
    """Of the served, from the moment they were due, in milliseconds."""
    unserved: float = 0.01
    """Most that may be degraded, refused, late or failed together."""
    failed: float = 0.0
    """Most that may fail."""

    def missed(self, outcomes: Mapping[str, int], p99_ms: float | None) -> list[str]:
        """What was missed, in words; `p99_ms` is None where nothing was served."""
        valid = sum(outcomes.values()) - outcomes[Outcome.INVALID]
        if not valid or p99_ms is None:
            return ["nothing was served"]
        missed = []
        if p99_ms > self.p99_ms:
            missed.append(f"p99 {p99_ms:.1f} ms, goal {self.p99_ms:g} ms")
        unserved = (valid - outcomes[Outcome.ANSWERED]) / valid
        if unserved > self.unserved:
            missed.append(f"{unserved:.2%} not answered in full, goal {self.unserved:.2%}")
        failed = outcomes[Outcome.FAILED] / valid
        if failed > self.failed:
            missed.append(f"{failed:.2%} failed, goal {self.failed:.2%}")
        return missed
