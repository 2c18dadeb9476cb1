"""Every metric of the gateway: its name, type, unit and labels, in one place.

`scene` is one of the configured scenes, or "none" where the body did not get that far. Ids of
users, items and requests are never labels.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

NO_SCENE = "none"

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
BYTES = tuple(float(1 << power) for power in range(10, 25, 2))
DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1)
COUNTS = (1, 10, 30, 100, 300, 1000, 3000, 10000)


class Metrics:
    """The catalogue, on a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "mtgr_requests",
            "Ranking requests by outcome: answered or degraded.",
            ["scene", "outcome"],
            registry=r,
        )
        self.degraded = Counter(
            "mtgr_degraded",
            "Degraded answers by reason and by what ranked instead.",
            ["scene", "reason", "ranked_by"],
            registry=r,
        )
        self.refused = Counter(
            "mtgr_refused",
            "Valid requests turned away, by reason.",
            ["scene", "reason"],
            registry=r,
        )
        self.invalid = Counter(
            "mtgr_invalid", "Invalid requests by reason.", ["scene", "reason"], registry=r
        )
        self.failed = Counter(
            "mtgr_failed", "Requests that a bug of ours answered with 500.", ["scene"], registry=r
        )
        self.disconnected = Counter(
            "mtgr_disconnected", "Callers gone before their body was read.", registry=r
        )
        self.stage_seconds = Histogram(
            "mtgr_stage_seconds",
            "Seconds of a ranking request by stage.",
            ["scene", "stage"],
            registry=r,
            buckets=SECONDS,
        )
        self.request_seconds = Histogram(
            "mtgr_request_seconds",
            "Seconds of a ranking request, from headers to answer.",
            ["scene"],
            registry=r,
            buckets=SECONDS,
        )
        self.payload_bytes = Histogram(
            "mtgr_payload_bytes",
            "Bytes of the packed batch that crosses to the engine.",
            ["scene"],
            registry=r,
            buckets=BYTES,
        )
        self.candidates = Histogram(
            "mtgr_candidates",
            "Candidates of a ranking request.",
            ["scene"],
            registry=r,
            buckets=COUNTS,
        )
        self.features_absent = Counter(
            "mtgr_features_absent",
            "Parts of the features that could not be had, by reason.",
            ["scene", "part", "reason"],
            registry=r,
        )
        self.events = Counter(
            "mtgr_events",
            "Events acknowledged: appended, repeated (seen before) or labels.",
            ["scene", "outcome"],
            registry=r,
        )
        self.in_flight = Gauge("mtgr_in_flight", "Requests in flight.", registry=r)
        self.ready = Gauge("mtgr_ready", "1 once every engine is loaded and verified.", registry=r)
        self.switches = Counter(
            "mtgr_switches",
            "Engine switches by outcome: flipped, refused, rolled_back or kept.",
            ["model", "outcome"],
            registry=r,
        )
        self.shadow_difference = Histogram(
            "mtgr_shadow_difference",
            "Largest difference of a probability between the live engine and its shadow.",
            ["model"],
            registry=r,
            buckets=DIFFERENCES,
        )
        self.model = Gauge(
            "mtgr_model", "1 for each scene's model and its version.",
            ["scene", "model", "version"], registry=r,
        )  # fmt: skip
