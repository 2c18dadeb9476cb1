"""The metric catalogue: name, type, unit, meaning and labels of everything exported, in one place.

`scene` is one of the configured scenes, or "none" where the body did not get that far. Ids of
users, items and requests are never labels. `mtgr metrics` prints this as a table; dashboards and
alerts may name nothing else.
"""

from collections.abc import Callable
from importlib.metadata import version
from platform import python_version

from prometheus_client import Gauge

from service.breaker import State
from service.catalogue import Catalogue

NO_SCENE = "none"

LATENCY_OBJECTIVE_S, DEADLINE_S = 0.05, 0.2
"""What most answers stay within, and the default deadline, seconds: both are bucket edges."""

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02),
    *(LATENCY_OBJECTIVE_S, 0.1, DEADLINE_S, 0.5, 1.0, 2.5),
)
BYTES = tuple(float(1 << power) for power in range(10, 25, 2))
PROBABILITIES = (0.001, 0.003, 0.01, 0.03, *(round(0.05 * i, 2) for i in range(1, 20)))
DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1)
AGES = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, *(3600.0 * h for h in (3, 6, 12, 24, 48, 168, 720)))
COUNTS = (1, 10, 30, 100, 300, 1000, 3000, 10000)


class Metrics:
    """Every metric of one gateway."""

    def __init__(self) -> None:
        self.catalogue = of = Catalogue()
        self.registry = of.registry
        self._sampled: list[tuple[Gauge, Callable[[], float]]] = []

        # A line for name and unit, one for the meaning, one for the labels.
        # fmt: off

        # Requests: rate, errors and duration, whole and by stage.
        self.requests = of.counter(
            "mtgr_requests", "requests",
            "Ranking requests by outcome: answered or degraded.",
            "scene", "outcome",
        )
        self.degraded = of.counter(
            "mtgr_degraded", "requests",
            "Degraded answers by reason and by what ranked instead.",
            "scene", "reason", "ranked_by",
        )
        self.refused = of.counter(
            "mtgr_refused", "requests",
            "Valid requests turned away, by reason.",
            "scene", "reason",
        )
        self.invalid = of.counter(
            "mtgr_invalid", "requests",
            "Invalid requests by reason.",
            "scene", "reason",
        )
        self.failed = of.counter(
            "mtgr_failed", "requests",
            "Requests that a bug of ours answered with 500.",
            "scene",
        )
        self.disconnected = of.counter(
            "mtgr_disconnected", "requests",
            "Callers gone, or cut off as too slow, before their request was worked on.",
        )
        self.request_seconds = of.histogram(
            "mtgr_request_seconds", "seconds",
            "Time of a ranking request, from headers to answer.",
            "scene",
            buckets=SECONDS,
        )
        self.stage_seconds = of.histogram(
            "mtgr_stage_seconds", "seconds",
            "Time of a ranking request by stage; the stages add up to the whole.",
            "scene", "stage",
            buckets=SECONDS,
        )
        self.candidates = of.histogram(
            "mtgr_candidates", "candidates",
            "Candidates of a ranking request.",
            "scene",
            buckets=COUNTS,
        )
        self.payload_bytes = of.histogram(
            "mtgr_payload_bytes", "bytes",
            "Size of the packed batch that crosses to the engine.",
            "scene",
            buckets=BYTES,
        )
        self.in_flight = of.gauge(
            "mtgr_in_flight", "requests",
            "Ranking requests at work.",
            over_workers="sum",
        )
        self.late = of.counter(
            "mtgr_late", "requests",
            "Answers that were ready after their deadline.",
            "scene",
        )

        # Overload: who is let in.
        self.limit = of.gauge(
            "mtgr_limit", "requests",
            "Ranking requests worked on at a time at most, as found by now.",
            over_workers="sum",
        )
        self.waiting = of.gauge(
            "mtgr_waiting", "requests",
            "Ranking requests waiting for their turn.",
            over_workers="sum",
        )
        self.loop_lag_seconds = of.gauge(
            "mtgr_loop_lag_seconds", "seconds",
            "How late the event loop is.",
        )
        self.wait = of.gauge(
            "mtgr_wait_seconds", "seconds",
            "Estimated wait of a ranking request that came now.",
        )

        # Features and behaviour.
        self.features_absent = of.counter(
            "mtgr_features_absent", "parts",
            "Parts of the features that could not be had, by reason.",
            "scene", "part", "reason",
        )
        self.events = of.counter(
            "mtgr_events", "events",
            "Events acknowledged: appended, repeated (seen before) or labels.",
            "scene", "outcome",
        )

        self.snapshot_age = of.histogram(
            "mtgr_snapshot_age_seconds", "seconds",
            "Age of the user's stored features at the time of the request.",
            "scene",
            buckets=AGES,
        )
        self.event_age = of.histogram(
            "mtgr_event_age_seconds", "seconds",
            "Age of the user's last real-time event at the time of the request.",
            "scene",
            buckets=AGES,
        )

        # Dependencies: redis, and each model's engine; server is one of several.
        self.breaker = of.gauge(
            "mtgr_breaker_state", "state",
            "0 closed, 1 half-open, 2 open: left alone because it kept failing.",
            "dependency", "server",
        )
        self.dependency_failures = of.counter(
            "mtgr_dependency_failures", "calls",
            "Calls that failed, by reason; circuit_open was not made.",
            "dependency", "server", "reason",
        )
        self.asked_again = of.counter(
            "mtgr_asked_again", "calls",
            "Requests that another server was asked for: retry, hedge; or not: exhausted.",
            "dependency", "why",
        )

        # The request log.
        self.request_log = of.counter(
            "mtgr_request_log", "requests",
            "Requests for the log by outcome: written, or dropped: overflow, disk_full or error.",
            "outcome",
        )
        self.request_log_bytes = of.counter(
            "mtgr_request_log_bytes", "bytes",
            "Size of the log's files as they were written.",
        )
        self.request_log_removed = of.counter(
            "mtgr_request_log_removed", "files",
            "Oldest files removed to keep the log within its size.",
        )

        # Engines: what serves, and how it came to.
        self.build = of.gauge(
            "mtgr_build_info", "info",
            "1, for the version of the gateway and of its Python.",
            "version", "python",
        )
        self.build.labels(version("mtgr-serving"), python_version()).set(1)
        self.ready = of.gauge(
            "mtgr_ready", "boolean",
            "1 once every engine is loaded, verified and warm.",
            over_workers="min",
        )
        self.model = of.gauge(
            "mtgr_model_info", "info",
            "1, for each scene's model, its version and the kind of its engine.",
            "scene", "model", "version", "engine",
        )
        self.captures = of.counter(
            "mtgr_captures", "requests",
            "Slow or degraded requests to keep by outcome: written, overflow, disk_full or error.",
            "outcome",
        )
        self.reloads = of.counter(
            "mtgr_reloads", "reloads",
            "Settings read again by outcome: taken or refused.",
            "outcome",
        )
        self.switches = of.counter(
            "mtgr_switches", "switches",
            "Engine switches by outcome: flipped, refused, rolled_back or kept.",
            "model", "outcome",
        )
        self.switching = of.gauge(
            "mtgr_switching", "boolean",
            "1 while another engine is being loaded, verified or shadowed.",
            "model",
        )
        self.shadow_difference = of.histogram(
            "mtgr_shadow_difference", "probability",
            "Largest difference of a probability between the live engine and its shadow.",
            "model",
            buckets=DIFFERENCES,
        )

        # Model health: what is predicted, and what came of it.
        self.score = of.histogram(
            "mtgr_prediction", "probability",
            "Probability predicted for the first item of an answer.",
            "scene", "version", "task",
            buckets=PROBABILITIES,
        )
        self.predicted = of.counter(
            "mtgr_feedback_predicted", "outcomes",
            "Sum of the probabilities predicted for items that were reported as shown.",
            "scene", "task",
        )
        self.happened = of.counter(
            "mtgr_feedback_happened", "outcomes",
            "Reported clicks (task ctr) and orders (task ctcvr) of such items.",
            "scene", "task",
        )
        # fmt: on

    def sampled(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Set a gauge to what `read` gives whenever `sample` is called."""
        self._sampled.append((gauge, read))

    def sample(self) -> None:
        """Look at what changes without being counted, and count what was observed. One worker's
        gauges, as another tells them, are as old as its last call."""
        for gauge, read in self._sampled:
            gauge.set(read())
        for histogram in self.catalogue.gathering:
            histogram.count()

    def watch(self, dependency: str) -> "DependencyMetrics":
        """What to tell of a dependency's calls."""
        return DependencyMetrics(self, dependency)


class DependencyMetrics:
    """Implements `service.breaker.Watch`."""

    def __init__(self, metrics: Metrics, dependency: str):
        self._metrics, self._dependency = metrics, dependency

    def breaker(self, server: str, state: State) -> None:
        """Show the state."""
        self._metrics.breaker.labels(self._dependency, server).set(state)

    def failed(self, server: str, reason: str) -> None:
        """Count a failure."""
        self._metrics.dependency_failures.labels(self._dependency, server, reason).inc()

    def asked_again(self, why: str) -> None:
        """Count a second question."""
        self._metrics.asked_again.labels(self._dependency, why).inc()
