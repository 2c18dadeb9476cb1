"""What /metrics tells: of this process, or of all workers together.

prometheus_client keeps the counts of several workers in files of a directory, which an environment
variable of its own names: whoever is asked adds them up.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def shared() -> bool:
    """Whether this process is one of several workers."""
    return METRICS_DIR in os.environ


def exposition(registry: CollectorRegistry) -> bytes:
    """Prometheus text of a registry; of all workers' where there are several."""
    if not shared():
        return generate_latest(registry)
    directory = os.environ[METRICS_DIR]
    together = CollectorRegistry()
    MultiProcessCollector(together, directory)  # type: ignore[no-untyped-call]  # the library's
    together.register(WorkerProcesses(Path(directory)))
    return generate_latest(together)


def retire(gauge: Gauge, *labels: str) -> None:
    """A fact holds no longer: its series goes, or is 0 where workers share the file."""
    if shared():
        gauge.labels(*labels).set(0)
    else:
        gauge.remove(*labels)


class WorkerProcesses(Collector):
    """process_* of all workers that live, added up: CPU, memory, open files."""

    def __init__(self, directory: Path):
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """One metric for each of `ProcessCollector`'s."""
        found: dict[str, list[Metric]] = {}
        for file in sorted(self._directory.glob("worker-*.pid")):
            for metric in ProcessCollector(pid=file.read_text, registry=None).collect():
                found.setdefault(metric.name, []).append(metric)
        for name, of_workers in found.items():
            numbers = [metric.samples[0].value for metric in of_workers]
            total = min(numbers) if name == "process_start_time_seconds" else sum(numbers)
            of_workers[0].samples[0] = of_workers[0].samples[0]._replace(value=total)
            yield of_workers[0]
