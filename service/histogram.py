"""Histograms that are cheap to observe: numbers wait in a list and are counted many at a time.

prometheus_client takes a lock and walks the buckets for each number, and a request has sixteen.
What waits is counted before it is told, and at least once a second (`Metrics.sample`).
"""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from prometheus_client import Histogram


class GatheringHistogram(Histogram):
    """prometheus_client's, whose `observe` is a list's `append`; counted by one thread."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._waiting: list[float] = []
        self.observe = self._waiting.append  # type: ignore[method-assign,assignment]  # no exemplars

    def count(self) -> None:
        """Count what waits, here or in the children by label."""
        if self._labelnames and not self._labelvalues:
            for child in cast(dict[Any, GatheringHistogram], self._metrics).values():
                child.count()
            return
        number = len(self._waiting)
        values = self._waiting[:number]
        del self._waiting[:number]
        buckets = np.searchsorted(self._upper_bounds, values)  # NaN is in none
        counts = np.bincount(buckets, minlength=len(self._buckets))
        for bucket, count in zip(self._buckets, counts.tolist(), strict=False):
            if count:
                bucket.inc(count)
        self._sum.inc(sum(values))

    def _child_samples(self) -> Iterable[Any]:
        self.count()
        return super()._child_samples()
