"""What the service promises its callers, and the share of requests that breaks each promise."""

from dataclasses import dataclass

from service.metrics import LATENCY_OBJECTIVE_S


@dataclass(frozen=True)
class Objective:
    """`target` of all requests, over thirty days, are good."""

    name: str
    target: float
    promise: str
    errors: str
    """PromQL, share of bad requests over a window; `{w}` stands for the window."""

    @property
    def budget(self) -> float:
        """Share of requests that may be bad."""
        return round(1 - self.target, 6)


# A labelled counter has no series before its first event: without `or vector(0)` a sum with it
# would be empty, and an alert on it silent.
CALLERS_FAULT = "rate_limited|unauthorized|forbidden|switch_refused"
REFUSED = (
    f'((sum(rate(mtgr_refused_total{{reason!~"{CALLERS_FAULT}"}}[{{w}}])) or vector(0))'
    " + (sum(rate(mtgr_failed_total[{w}])) or vector(0)))"
)

OBJECTIVES = (
    Objective(
        "availability",
        0.999,
        "valid requests get a ranked answer",
        f"{REFUSED} / ({REFUSED} + (sum(rate(mtgr_requests_total[{{w}}])) or vector(0)))",
    ),
    Objective(
        "latency",
        0.99,
        f"answers take at most {1e3 * LATENCY_OBJECTIVE_S:g} ms in the gateway",
        f'1 - sum(rate(mtgr_request_seconds_bucket{{le="{LATENCY_OBJECTIVE_S:g}"}}[{{w}}]))'
        " / sum(rate(mtgr_request_seconds_count[{w}]))",
    ),
    Objective(
        "degradation",
        0.995,
        "answers are ranked by the model with every feature",
        '(sum(rate(mtgr_requests_total{outcome="degraded"}[{w}])) or vector(0))'
        " / sum(rate(mtgr_requests_total[{w}]))",
    ),
)

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
"""Over which errors are recorded."""


@dataclass(frozen=True)
class Burn:
    """How fast the budget of thirty days goes: `rate` times too fast over both windows."""

    severity: str
    rate: float
    long: str
    short: str


BURNS = (
    Burn("page", 14.4, "1h", "5m"),  # 2% of the budget in an hour
    Burn("page", 6, "6h", "30m"),  # 5% in six hours
    Burn("ticket", 3, "1d", "2h"),  # 10% in a day
    Burn("ticket", 1, "3d", "6h"),  # all of it in thirty days
)
"""Google's SRE workbook, chapter 5, table 5-8."""
