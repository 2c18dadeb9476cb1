"""How many requests to work on at a time: the fewest that keep the bottleneck busy.

The gradient of latency sets it, as in Envoy's adaptive concurrency filter and Netflix's
concurrency-limits: while requests take as long as they do in calm, more of them cost nothing;
once they take longer, they only wait for each other, here or in a queue that we do not see.
Where the bottleneck is (our own event loop, Redis, the engine) need not be known.
"""

import math
from collections import deque
from math import sqrt
from statistics import median
from time import monotonic

CALM = 3
"""With so few at work when it begins and ends, a request's latency counts as calm."""

CALM_SAMPLES = 20
"""Calm requests whose median is the latency to compare with."""

RENEW_S = 30.0
"""Under pressure nothing is calm: after so long, work on CALM at a time until there are samples
again, since what the engine takes may have changed."""

WINDOW_S, WINDOW_SAMPLES = 0.1, 10
"""Between two adaptations: so long, and so many requests, at least."""

TOLERANCE = 1.25
"""Latency over the calm one that is no sign of a queue."""

STANDING_LAG_S = 0.004
"""An event loop that is always later than this has too much at work, whatever the latencies: who
is to be refused waits for it too."""


class Limit:
    """The number, between min(CALM, most) and `most`."""

    def __init__(self, most: int):
        self.most = most
        self._value = self._least = float(min(CALM, most))
        self._calm: deque[float] = deque(maxlen=CALM_SAMPLES)
        self._window: list[float] = []
        self._lag_s = math.inf
        self._window_from = self._calm_at = monotonic()
        self._reached = False

    def reached(self) -> None:
        """A request found the limit reached; unless that happens, there is no need for more."""
        self._reached = True

    def __call__(self) -> int:
        """Requests to work on at a time."""
        return int(self._value if len(self._calm) == CALM_SAMPLES else self._least)

    def observe(self, seconds: float, beside: int, lag_s: float = 0.0) -> None:
        """A request took `seconds`, with up to `beside` at work when it began and when it ended,
        itself included; the event loop was `lag_s` late then."""
        now = monotonic()
        if beside <= CALM:
            self._calm.append(seconds)
            self._calm_at = now
        self._window.append(seconds)
        self._lag_s = min(self._lag_s, lag_s)
        if now - self._window_from < WINDOW_S or len(self._window) < WINDOW_SAMPLES:
            return
        if len(self._calm) == CALM_SAMPLES:
            calmer = TOLERANCE * median(self._calm) / max(median(self._window), 1e-9)
            self._adapt(min(calmer, STANDING_LAG_S / max(self._lag_s, 1e-9)))
            if self._reached and now - self._calm_at > RENEW_S:
                self._calm.clear()
        self._window.clear()
        self._window_from, self._reached, self._lag_s = now, False, math.inf

    def _adapt(self, gradient: float) -> None:
        gradient = min(1.0, max(0.5, gradient))
        # The square root leaves room for a burst, and lets the limit grow where nothing is slow.
        wanted = gradient * self._value + sqrt(self._value)
        if wanted < self._value or self._reached:
            self._value = min(float(self.most), max(self._least, wanted))
