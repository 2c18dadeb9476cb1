"""How many requests to work on at a time: the fewest that keep the bottleneck busy.

The gradient of latency sets it, as in Envoy's adaptive concurrency filter and Netflix's
concurrency-limits: while requests take as long as they do in calm, more of them cost nothing;
once they take longer, they only wait for each other, here or in a queue that we do not see.
Where the bottleneck is (our own event loop, Redis, the engine) need not be known.
"""

from collections import deque
from math import sqrt
from statistics import median
from time import monotonic

CALM = 3
"""With so few at work at its start, a request's latency counts as calm."""

CALM_SAMPLES = 20
"""Calm requests whose median is the latency to compare with."""

RENEW_S = 30.0
"""Under pressure nothing is calm: after so long, work on CALM at a time until there are samples
again, since what the engine takes may have changed."""

WINDOW_S, WINDOW_SAMPLES = 0.1, 10
"""Between two adaptations: so long, and so many requests, at least."""

TOLERANCE = 1.25
"""Latency over the calm one that is no sign of a queue."""


class Limit:
    """The number, between min(CALM, most) and `most`."""

    def __init__(self, most: int):
        self.most = most
        self._value = self._least = float(min(CALM, most))
        self._calm: deque[float] = deque(maxlen=CALM_SAMPLES)
        self._window: list[float] = []
        self._window_from = self._calm_at = monotonic()
        self._reached = False

    def reached(self) -> None:
        """A request found the limit reached; unless that happens, there is no need for more."""
        self._reached = True

    def __call__(self) -> int:
        """Requests to work on at a time."""
        return int(self._value if len(self._calm) == CALM_SAMPLES else self._least)

    def observe(self, seconds: float, beside: int) -> None:
        """A request took `seconds`, with `beside` at work when it began, itself included."""
        now = monotonic()
        if beside <= CALM:
            self._calm.append(seconds)
            self._calm_at = now
        self._window.append(seconds)
        if now - self._window_from < WINDOW_S or len(self._window) < WINDOW_SAMPLES:
            return
        if len(self._calm) == CALM_SAMPLES:
            self._adapt(median(self._calm) / max(median(self._window), 1e-9))
            if self._reached and now - self._calm_at > RENEW_S:
                self._calm.clear()
        self._window.clear()
        self._window_from, self._reached = now, False

    def _adapt(self, ratio: float) -> None:
        gradient = min(1.0, max(0.5, TOLERANCE * ratio))
        # The square root leaves room for a burst, and lets the limit grow where nothing is slow.
        wanted = gradient * self._value + sqrt(self._value)
        if wanted < self._value or self._reached:
            self._value = min(float(self.most), max(self._least, wanted))
