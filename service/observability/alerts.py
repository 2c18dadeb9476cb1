"""Every alert: when it fires, how loudly, and what it says. docs/runbooks has a page for each."""

from dataclasses import dataclass
from math import log

from service.observability.objectives import BURNS, OBJECTIVES, Objective

REQUESTS = "sum(rate(mtgr_requests_total[5m]))"
TURNED_AWAY = 'sum(rate(mtgr_refused_total{reason=~"overloaded|expired"}[5m]))'
REACH = 'reason=~"timeout|unavailable|error|circuit_open"'
"""Reasons that blame Redis, not what is stored there."""

SHADOW_TOLERANCE = 0.003
"""Of 16-bit engines; a bucket edge of `mtgr_shadow_difference`."""


STALE_S = 48 * 3600
"""Profiles and lifelong sequences are written daily; a bucket edge of their age."""

LOG_QUARTER = log(1.25)
"""A quarter up, or as much down. PromQL's `ln` takes no scalar."""


@dataclass(frozen=True)
class Alert:
    """One rule. `page` wakes somebody, `ticket` waits for the morning."""

    name: str
    severity: str
    expr: str
    lasting: str
    """How long before it fires."""
    summary: str


def burning(objective: Objective, severity: str) -> str:
    """PromQL: a budget goes too fast, over a long window and still now."""
    slo = f'{{slo="{objective.name}"}}'
    pairs = [
        " and ".join(
            f"mtgr:errors:ratio_rate{window}{slo}"
            f" > on (slo) {burn.rate:g} * (1 - mtgr:objective:ratio{slo})"
            for window in (burn.long, burn.short)
        )
        for burn in BURNS
        if burn.severity == severity
    ]
    return " or ".join(f"({pair})" for pair in pairs)


BURN_ALERTS = tuple(
    Alert(
        f"Mtgr{objective.name.capitalize()}Burn{how}",
        severity,
        burning(objective, severity),
        lasting,
        f"{objective.name}: {{{{ $value | humanizePercentage }}}} of requests are bad; the promise "
        f"is that {100 * objective.target:g}% of {objective.promise}",
    )
    for objective in OBJECTIVES
    for how, severity, lasting in (("Fast", "page", "2m"), ("Slow", "ticket", "15m"))
)

CAUSES = (
    Alert(
        "MtgrAbsent", "page", "absent(mtgr_ready)", "5m",
        "no gateway is scraped at all",
    ),
    Alert(
        "MtgrNotReady", "page", "mtgr_ready == 0", "5m",
        "{{ $labels.instance }} has been loading or failing to load its engine",
    ),
    Alert(
        "MtgrBug", "ticket", "sum by (scene) (increase(mtgr_failed_total[15m])) > 0", "0m",
        "requests of scene {{ $labels.scene }} were answered with 500: a bug of ours",
    ),
    Alert(
        "MtgrOverloaded", "page",
        f"{TURNED_AWAY} / ({TURNED_AWAY} + {REQUESTS}) > 0.05", "5m",
        "{{ $value | humanizePercentage }} of requests are turned away: more load than capacity",
    ),
    Alert(
        "MtgrRedisFailing", "page",
        f'sum(rate(mtgr_features_absent_total{{part="profile",{REACH}}}[5m]))'
        f" / {REQUESTS} > 0.05", "5m",
        "Redis does not answer for {{ $value | humanizePercentage }} of requests",
    ),
    Alert(
        "MtgrBackendFailing", "page",
        f'sum(rate(mtgr_degraded_total{{reason!~"features_.*"}}[5m])) / {REQUESTS} > 0.05', "5m",
        "the engine does not rank {{ $value | humanizePercentage }} of requests",
    ),
    Alert(
        "MtgrBreakerOpen", "ticket",
        "max by (dependency, server) (mtgr_breaker_state) == 2", "2m",
        "{{ $labels.dependency }} {{ $labels.server }} fails so often that it is left alone",
    ),
    Alert(
        "MtgrFeaturesStale", "ticket",
        "histogram_quantile(0.5, sum by (le, scene)"
        f" (rate(mtgr_snapshot_age_seconds_bucket[30m]))) > {STALE_S}", "30m",
        "half of the users of scene {{ $labels.scene }} have features of "
        "{{ $value | humanizeDuration }} ago",
    ),
    Alert(
        "MtgrEngineRefused", "ticket",
        'sum by (model) (increase(mtgr_switches_total{outcome="refused"}[1h])) > 0', "0m",
        "a new engine for {{ $labels.model }} failed to load, or its parity; the old one serves",
    ),
    Alert(
        "MtgrEngineRolledBack", "ticket",
        'sum by (model) (increase(mtgr_switches_total{outcome="rolled_back"}[1h])) > 0', "0m",
        "the new engine of {{ $labels.model }} failed in a burst; the old one serves again",
    ),
    Alert(
        "MtgrSwitchStuck", "ticket", "mtgr_switching == 1", "15m",
        "a switch of {{ $labels.model }} on {{ $labels.instance }} does not end",
    ),
    Alert(
        "MtgrVersionsMixed", "ticket",
        "count by (scene) (count by (scene, version) (mtgr_model_info)) > 1", "2h",
        "{{ $value }} versions serve scene {{ $labels.scene }}: a forgotten rollout or canary",
    ),
    Alert(
        "MtgrShadowDiffers", "ticket",
        "1 - sum by (model) (increase(mtgr_shadow_difference_bucket"
        f'{{le="{SHADOW_TOLERANCE}"}}[1h]))'
        " / sum by (model) (increase(mtgr_shadow_difference_count[1h])) > 0.05", "0m",
        "{{ $value | humanizePercentage }} of shadow scores of {{ $labels.model }} differ by more "
        f"than {SHADOW_TOLERANCE}",
    ),
    Alert(
        "MtgrCalibrationOff", "ticket",
        "abs(ln(sum by (scene, task) (increase(mtgr_feedback_happened_total[6h]))"
        " / sum by (scene, task) (increase(mtgr_feedback_predicted_total[6h]))))"
        f" > {LOG_QUARTER:.4f}"
        " and sum by (scene, task) (increase(mtgr_feedback_predicted_total[6h])) > 200", "1h",
        "{{ $labels.task }} of scene {{ $labels.scene }} is off by more than a quarter",
    ),
    Alert(
        "MtgrScoresDrift", "ticket",
        "abs(ln(mtgr:prediction:mean_rate1h / (mtgr:prediction:mean_rate1h offset 1d)))"
        f" > {LOG_QUARTER:.4f}", "1h",
        "mean {{ $labels.task }} of scene {{ $labels.scene }} moved by over a quarter in a day",
    ),
    Alert(
        "MtgrRequestLogDrops", "ticket",
        'sum by (outcome) (rate(mtgr_request_log_total{outcome!="written"}[5m])) > 0', "15m",
        "served requests are missing in the log: {{ $labels.outcome }}",
    ),
)  # fmt: skip

ALERTS = (*BURN_ALERTS, *CAUSES)
