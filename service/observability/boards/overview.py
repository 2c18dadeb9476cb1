"""Is the service keeping its promises, and if not, which?"""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from service.metrics import LATENCY_OBJECTIVE_S
from service.observability.objectives import OBJECTIVES
from service.observability.panels import (
    BYTES,
    COUNT,
    RATE,
    RATIO,
    SCENE,
    SECONDS,
    SHARE,
    W,
    board,
    by,
    lines,
    number,
    quantiles,
    row,
)


def overview() -> Dashboard:
    """Service overview: promises, traffic, time, refusals, resources."""
    done = board("mtgr-overview", "MTGR / service", __doc__ or "")
    done = (
        done.with_row(row("Promises"))
        .with_panel(number("gateways ready", "Instances whose engines are loaded, verified and "
                           "warm.", COUNT, "sum(mtgr_ready)"))
        .with_panel(number("requests", "Ranked a second.", RATE,
                           f"sum(rate(mtgr_requests_total{{{SCENE}}}[{W}]))"))
    )  # fmt: skip
    for objective in OBJECTIVES:
        slo = f'{{slo="{objective.name}"}}'
        expr = f"mtgr:errors:ratio_rate5m{slo}"
        about = f"Bad share, 5 minutes. Promise: {100 * objective.target:g}% of {objective.promise}"
        done = done.with_panel(
            number(f"{objective.name}: bad", about, SHARE, expr, bad_above=objective.budget)
        )
    p99 = quantiles("mtgr_request_seconds", SCENE)[2][0]
    return (
        done.with_panel(number("p99", "Time in the gateway.", SECONDS, p99,
                               bad_above=LATENCY_OBJECTIVE_S))
        .with_panel(lines(
            "budget burn", "How many times faster than allowed the error budget of thirty days "
            "goes; a page at 14.4 over an hour and five minutes.", RATIO,
            ("mtgr:errors:ratio_rate1h / on (slo) (1 - mtgr:objective:ratio)", "{{slo}} 1h"),
            ("mtgr:errors:ratio_rate5m / on (slo) (1 - mtgr:objective:ratio)", "{{slo}} 5m"),
            limit=14.4,
        ))
        .with_panel(lines("answers", "By outcome.", RATE,
                          by("outcome", "mtgr_requests_total", SCENE), stacked=True))
        .with_panel(lines("latency", "From headers to answer; dashed: the objective.", SECONDS,
                          *quantiles("mtgr_request_seconds", SCENE), limit=LATENCY_OBJECTIVE_S))
        .with_row(row("What was not answered in full"))
        .with_panel(lines("degraded", "By reason, and what ranked instead of the model.", RATE,
                          ("sum by (reason, ranked_by)"
                           f" (rate(mtgr_degraded_total{{{SCENE}}}[{W}]))",
                           "{{reason}}: {{ranked_by}}"), stacked=True))
        .with_panel(lines("refused", "Valid requests turned away, by reason.", RATE,
                          by("reason", "mtgr_refused_total"), stacked=True))
        .with_panel(lines("invalid, failed, late, gone", "The callers' mistakes by reason; ours; "
                          "answers after their deadline; callers that left.", RATE,
                          by("reason", "mtgr_invalid_total"),
                          (f"sum(rate(mtgr_failed_total[{W}]))", "failed"),
                          (f"sum(rate(mtgr_late_total[{W}]))", "late"),
                          (f"sum(rate(mtgr_disconnected_total[{W}]))", "gone")))
        .with_row(row("Dependencies: Redis, and the engine's servers"))
        .with_panel(lines("failures", "Calls by reason; circuit_open was not made.", RATE,
                          ("sum by (dependency, reason)"
                           f" (rate(mtgr_dependency_failures_total[{W}]))",
                           "{{dependency}}: {{reason}}"), stacked=True))
        .with_panel(lines("circuit breakers", "0 closed, 1 half-open, 2 open.", COUNT,
                          ("max by (dependency, server) (mtgr_breaker_state)",
                           "{{dependency}} {{server}}"), limit=1.5))
        .with_panel(lines("asked again", "Retries and hedges within their budget; exhausted: no "
                          "more allowed.", RATE,
                          (f"sum by (dependency, why) (rate(mtgr_asked_again_total[{W}]))"
                           " or vector(0)", "{{dependency}} {{why}}")))
        .with_row(row("Queue and process: utilization, saturation, errors"))
        .with_panel(lines("at work and waiting", "Requests; the limit adapts to what the engine "
                          "and the machine can do.", COUNT,
                          ("sum(mtgr_in_flight)", "at work"), ("sum(mtgr_waiting)", "waiting"),
                          ("sum(mtgr_limit)", "limit")))
        .with_panel(lines("wait", "Estimated wait of a request that came now, and how late the "
                          "event loop is.", SECONDS,
                          ("max(mtgr_wait_seconds)", "wait"),
                          ("max(mtgr_loop_lag_seconds)", "loop lag")))
        .with_panel(lines("CPU", "Cores, by instance.", RATIO,
                          (f"rate(process_cpu_seconds_total[{W}])", "{{instance}}")))
        .with_panel(lines("memory", "Resident, by instance.", BYTES,
                          ("process_resident_memory_bytes", "{{instance}}")))
        .with_panel(lines("events", "Behaviour and labels acknowledged.", RATE,
                          by("outcome", "mtgr_events_total", SCENE)))
        .with_panel(lines("request log", "Requests by outcome; anything but written is lost.",
                          RATE, by("outcome", "mtgr_request_log_total")))
    )  # fmt: skip
