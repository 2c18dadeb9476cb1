"""One row a request, in columns that grow; counted and summarized when the run is over."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from loadtest.outcome import SERVED, Outcome, Reply, judge, server_timing
from loadtest.request import Request

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MOST_WORDS = 64
"""Distinct reasons or stages kept: a server that invents them must not fill the report."""


class Samples:
    """What happened to every request. Times in seconds since the run's start."""

    def __init__(self) -> None:
        self._due: list[float] = []
        self._latency: list[float] = []
        self._lag: list[float] = []
        self._outcome: list[Outcome] = []
        self._reason: list[str] = []
        self._kind: list[str] = []
        self._stages: dict[str, list[float]] = {}
        self._reasons: set[str] = set()

    def __len__(self) -> int:
        return len(self._due)

    def reply(
        self, request: Request, due_s: float, latency_ms: float, reply: Reply, lag_ms: float = 0
    ) -> Outcome:
        """Judge and keep an answer that came `latency_ms` after it was due, to a request that was
        sent `lag_ms` after it was."""
        outcome, reason = judge(request, reply, latency_ms)
        if outcome in SERVED:
            for stage, taken in server_timing(reply.headers.get("server-timing", "")).items():
                if stage in self._stages or len(self._stages) < MOST_WORDS:
                    self._stages.setdefault(stage, []).append(taken)
        self.add(request, due_s, latency_ms, outcome, reason, lag_ms)
        return outcome

    def add(
        self,
        request: Request,
        due_s: float,
        latency_ms: float,
        outcome: Outcome,
        reason: str,
        lag_ms: float = 0,
    ) -> None:
        """Keep an outcome that is known already."""
        if reason not in self._reasons and len(self._reasons) >= MOST_WORDS:
            reason = "other"
        self._reasons.add(reason)
        self._due.append(due_s)
        self._latency.append(latency_ms)
        self._lag.append(lag_ms)
        self._outcome.append(outcome)
        self._reason.append(reason)
        self._kind.append(request.kind)

    @property
    def due_s(self) -> Floats:
        """[N] when each was due, in seconds."""
        return np.array(self._due)

    @property
    def latency_ms(self) -> Floats:
        """[N] from due to done, in milliseconds."""
        return np.array(self._latency)

    @property
    def lag_ms(self) -> Floats:
        """[N] from due to sent, in milliseconds: the generator's own part of the latency."""
        return np.array(self._lag)

    @property
    def kinds(self) -> NDArray[np.str_]:
        """[N] the request's kind."""
        return np.array(self._kind, dtype=np.str_)

    @property
    def why(self) -> NDArray[np.str_]:
        """[N] the outcome's reason; "" where there is nothing to say."""
        return np.array(self._reason, dtype=np.str_)

    @property
    def stages(self) -> dict[str, Floats]:
        """Milliseconds by stage, of answers that told them."""
        return {stage: np.array(taken) for stage, taken in self._stages.items()}

    def having(self, outcomes: Iterable[Outcome]) -> Mask:
        """[N] whether the outcome is one of these."""
        wanted = set(outcomes)
        return np.array([outcome in wanted for outcome in self._outcome], bool)

    def outcomes(self, where: Mask | None = None) -> dict[str, int]:
        """Requests by outcome, all six named."""
        kept = self._outcome if where is None else [self._outcome[i] for i in np.flatnonzero(where)]
        counts = Counter(kept)
        return {outcome.value: counts[outcome] for outcome in Outcome}

    def reasons(self, where: Mask | None = None) -> dict[str, dict[str, int]]:
        """Requests by outcome and reason, the most frequent first."""
        rows = range(len(self)) if where is None else np.flatnonzero(where)
        counts = Counter((self._outcome[i], self._reason[i]) for i in rows)
        reasons: dict[str, dict[str, int]] = {}
        for (outcome, reason), number in counts.most_common():
            if reason:
                reasons.setdefault(outcome.value, {})[reason] = number
        return reasons
