"""Where does the time of one request go?"""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from service.metrics import LATENCY_OBJECTIVE_S
from service.observability.alerts import STALE_S
from service.observability.panels import (
    BYTES,
    COUNT,
    RATE,
    SCENE,
    SECONDS,
    SHARE,
    W,
    board,
    lines,
    quantiles,
    row,
)

STAGES = f"mtgr_stage_seconds_sum{{{SCENE}}}"


def anatomy() -> Dashboard:
    """One request: its stages, its size, its features."""
    whole = f"sum(rate(mtgr_request_seconds_count{{{SCENE}}}[{W}]))"
    return (
        board("mtgr-anatomy", "MTGR / one request", __doc__ or "")
        .with_row(row("Stages"))
        .with_panel(lines("mean request", "The stages add up to the whole.", SECONDS,
                          (f"sum by (stage) (rate({STAGES}[{W}])) / scalar({whole})", "{{stage}}"),
                          span=12, stacked=True))
        .with_panel(lines("share of the time", "Which stage to look at first.", SHARE,
                          (f"sum by (stage) (rate({STAGES}[{W}]))"
                           f" / scalar(sum(rate({STAGES}[{W}])))", "{{stage}}"),
                          span=12, stacked=True))
        .with_panel(lines("p99 by stage", "Stages that are late at times.", SECONDS,
                          quantiles("mtgr_stage_seconds", SCENE, "stage")[2],
                          span=12, limit=LATENCY_OBJECTIVE_S))
        .with_panel(lines("stages run", "A stage that most requests do not pass (fallback, wait) "
                          "tells that something fails.", RATE,
                          (f"sum by (stage) (rate(mtgr_stage_seconds_count{{{SCENE}}}[{W}]))",
                           "{{stage}}"), span=12))
        .with_row(row("Size and features"))
        .with_panel(lines("candidates", "Of a request.", COUNT,
                          *quantiles("mtgr_candidates", SCENE)))
        .with_panel(lines("payload", "Packed batch of a request, as it crosses to the engine.",
                          BYTES, *quantiles("mtgr_payload_bytes", SCENE)))
        .with_panel(lines("age of stored features", "Profile and lifelong sequence, at the time of "
                          "the request; dashed: the alert.", SECONDS,
                          *quantiles("mtgr_snapshot_age_seconds", SCENE), limit=STALE_S))
        .with_panel(lines("age of the last event", "Of the real-time sequence.", SECONDS,
                          *quantiles("mtgr_event_age_seconds", SCENE)))
        .with_panel(lines("features that could not be had", "A share of the requests, by part and "
                          "reason; `absent` is a new user, everything else a fault.", SHARE,
                          (f"sum by (part, reason) (rate(mtgr_features_absent_total{{{SCENE}}}"
                           f"[{W}])) / scalar({whole})", "{{part}}: {{reason}}")))
    )  # fmt: skip
