"""Recording rules and alerts as Prometheus reads them."""

from typing import Any

from service.observability.alerts import ALERTS
from service.observability.objectives import OBJECTIVES, WINDOWS

RUNBOOKS = "docs/runbooks/"


def rules() -> dict[str, Any]:
    """The document of one rule file: objectives, what is recorded, and the alerts."""
    objectives = [
        {
            "record": "mtgr:objective:ratio",
            "expr": f"vector({objective.target})",
            "labels": {"slo": objective.name},
        }
        for objective in OBJECTIVES
    ]
    errors = [
        {
            "record": f"mtgr:errors:ratio_rate{window}",
            "expr": objective.errors.replace("{w}", window),
            "labels": {"slo": objective.name},
        }
        for objective in OBJECTIVES
        for window in WINDOWS
    ]
    predictions = [
        {
            "record": "mtgr:prediction:mean_rate1h",
            "expr": "sum by (scene, task) (rate(mtgr_prediction_sum[1h]))"
            " / sum by (scene, task) (rate(mtgr_prediction_count[1h]))",
        }
    ]
    alerts = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "runbook_url": f"{RUNBOOKS}{alert.name}.md",
            },
        }
        for alert in ALERTS
    ]
    return {
        "groups": [
            {"name": "mtgr-objectives", "rules": objectives},
            {"name": "mtgr-errors", "rules": errors},
            {"name": "mtgr-predictions", "rules": predictions},
            {"name": "mtgr-alerts", "rules": alerts},
        ]
    }
