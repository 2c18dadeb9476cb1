"""Does the model still say the truth?"""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from service.observability.panels import (
    RATE,
    RATIO,
    SCENE,
    SHARE,
    W,
    board,
    lines,
    quantiles,
    row,
)

MEAN = "sum by ({by}) (rate(mtgr_prediction_sum{{{s}}}[{w}])) / sum by ({by}) (rate(mtgr_prediction_count{{{s}}}[{w}]))"  # noqa: E501 - one expression


def health() -> Dashboard:
    """Scores and their drift, calibration against feedback, features."""
    mean = MEAN.format(by="task, version", s=SCENE, w=W)
    happened = f"sum by (task) (increase(mtgr_feedback_happened_total{{{SCENE}}}[30m]))"
    predicted = f"sum by (task) (increase(mtgr_feedback_predicted_total{{{SCENE}}}[30m]))"
    return (
        board("mtgr-health", "MTGR / model health", __doc__ or "")
        .with_row(row("Predictions for the first item"))
        .with_panel(lines("mean, by version", "Two versions side by side are a canary.", SHARE,
                          (mean, "{{task}} {{version}}")))
        .with_panel(lines("distribution of CTR", "Quantiles of the probability of a click.", SHARE,
                          *quantiles("mtgr_prediction", f'{SCENE}, task="ctr"')))
        .with_panel(lines("drift", "Mean of an hour over the mean of the hour before; 1 is no "
                          "drift. The alert compares with the day before.", RATIO,
                          ("mtgr:prediction:mean_rate1h / (mtgr:prediction:mean_rate1h offset 1h)",
                           "{{scene}} {{task}} / 1h ago"),
                          ("mtgr:prediction:mean_rate1h", "{{scene}} {{task}} mean")))
        .with_row(row("Calibration against feedback"))
        .with_panel(lines("outcomes / predictions", "Clicks and orders reported, over the sum of "
                          "their probabilities, 30 minutes; 1 is calibrated.", RATIO,
                          (f"{happened} / {predicted}", "{{task}}"), span=12))
        .with_panel(lines("outcomes and predictions", "Of items that were reported as shown.",
                          RATE,
                          (f"sum by (task) (rate(mtgr_feedback_happened_total{{{SCENE}}}[{W}]))",
                           "{{task}} happened"),
                          (f"sum by (task) (rate(mtgr_feedback_predicted_total{{{SCENE}}}[{W}]))",
                           "{{task}} predicted"), span=12))
        .with_row(row("What the model saw"))
        .with_panel(lines("ranked without the model", "Share of the answers.", SHARE,
                          (f'(sum(rate(mtgr_degraded_total{{{SCENE}, ranked_by!="model"}}[{W}]))'
                           f" or vector(0)) / sum(rate(mtgr_requests_total{{{SCENE}}}[{W}]))",
                           "without the model"), span=12))
        .with_panel(lines("features", "Parts that could not be had, by part.", SHARE,
                          (f"sum by (part) (rate(mtgr_features_absent_total{{{SCENE}}}[{W}]))"
                           f" / scalar(sum(rate(mtgr_requests_total{{{SCENE}}}[{W}])))",
                           "{{part}}"), span=12))
    )  # fmt: skip
