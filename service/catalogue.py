"""How a metric is made: known by name, type, unit, meaning and labels from the moment it exists."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from service.exposition import shared
from service.histogram import GatheringHistogram

# A second series for each would double a scrape and tell nobody anything.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left it untyped


@dataclass(frozen=True)
class Entry:
    """One metric, as it is exported."""

    name: str
    type: str
    unit: str
    """Base units (seconds, bytes, ratio) end the name; anything else says what is counted."""
    meaning: str
    labels: tuple[str, ...]


Metric = TypeVar("Metric", Counter, Histogram)


def remembering(metric: Metric) -> Metric:
    """The metric, each of its children looked up once: `labels` costs more than counting."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]  # the same, remembered
    return metric


Over = Literal["sum", "max", "min"]
MODES: dict[Over, Literal["livesum", "livemax", "livemin"]]
MODES = {"sum": "livesum", "max": "livemax", "min": "livemin"}


class Catalogue:
    """Makes metrics on a registry of its own, and knows what each of them is."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        if not shared():
            ProcessCollector(registry=self.registry)  # CPU, memory, open files
        self.entries: list[Entry] = []
        self.gathering: list[GatheringHistogram] = []

    def counter(self, name: str, unit: str, meaning: str, *labels: str) -> Counter:
        """Exported as `name`_total."""
        self.entries.append(Entry(f"{name}_total", "counter", unit, meaning, labels))
        return remembering(Counter(name, meaning, labels, registry=self.registry))

    def gauge(
        self, name: str, unit: str, meaning: str, *labels: str, over_workers: Over = "max"
    ) -> Gauge:
        """A value that goes up and down; 1 for a fact in its labels (unit "info"). Of several
        workers that live, the sum, the largest or the smallest is exported."""
        self.entries.append(Entry(name, "gauge", unit, meaning, labels))
        mode = MODES[over_workers]
        return Gauge(name, meaning, labels, registry=self.registry, multiprocess_mode=mode)

    def histogram(
        self, name: str, unit: str, meaning: str, *labels: str, buckets: Sequence[float]
    ) -> Histogram:
        """Exported as `name`_bucket, `name`_sum and `name`_count. One of several workers counts at
        once: others tell of it."""
        self.entries.append(Entry(name, "histogram", unit, meaning, labels))
        if shared():
            return remembering(
                Histogram(name, meaning, labels, registry=self.registry, buckets=buckets)
            )
        gathering = GatheringHistogram(
            name, meaning, labels, registry=self.registry, buckets=buckets
        )
        self.gathering.append(gathering)
        return remembering(gathering)


def table(entries: Sequence[Entry]) -> str:
    """The catalogue as Markdown."""
    rows = [("metric", "type", "unit", "labels", "meaning"), ("---",) * 5]
    rows += [
        (f"`{e.name}`", e.type, e.unit, ", ".join(e.labels) or "-", e.meaning) for e in entries
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
