"""The few kinds of panels that the dashboards are made of, valid Grafana by construction.

`$scene` and `$__rate_interval` in queries are filled in by Grafana.
"""

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
SCENE = 'scene=~"$scene"'
W = "$__rate_interval"

SECONDS, SHARE, RATE, BYTES, COUNT, RATIO = "s", "percentunit", "reqps", "bytes", "short", "none"
"""Grafana's names of units."""

Query = tuple[str, str]
"""PromQL, and what a line is called: a legend of `{{label}}`s."""

HEIGHT = 8


def board(uid: str, title: str, about: str) -> dashboard.Dashboard:
    """An empty dashboard with the variables that its queries use."""
    scenes = dashboard.QueryVariable("scene").label("scene").datasource(SOURCE)
    scenes = scenes.query("label_values(mtgr_requests_total, scene)").multi(True)
    scenes = scenes.include_all(True).all_value(".*").refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["mtgr"])
        .readonly()
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("MTGR").tags(["mtgr"]).as_dropdown(False).keep_time(True))
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
        .with_variable(scenes)
    )


def row(title: str) -> dashboard.Row:
    """A heading over the panels that follow."""
    return dashboard.Row(title)


def lines(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    span: int = 8,
    stacked: bool = False,
    limit: float | None = None,
) -> timeseries.Panel:
    """Values over time; `limit` draws the value not to be exceeded."""
    panel = timeseries.Panel().title(title).description(about).unit(unit).datasource(SOURCE)
    panel = panel.span(span).height(HEIGHT).min(0).fill_opacity(40 if stacked else 6)
    panel = panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .placement(kinds.LegendPlacement.BOTTOM)
        .display_mode(kinds.LegendDisplayMode.LIST)
    ).tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    if limit is not None:
        panel = panel.thresholds(_steps(limit)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        )
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel = panel.with_target(_target(query, letter))
    return panel


def number(
    title: str, about: str, unit: str, expr: str, *, bad_above: float | None = None, span: int = 4
) -> stat.Panel:
    """One value of now, red beyond `bad_above`."""
    panel = stat.Panel().title(title).description(about).unit(unit).datasource(SOURCE)
    panel = panel.span(span).height(4).graph_mode(kinds.BigValueGraphMode.AREA)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if bad_above is not None:
        panel = panel.thresholds(_steps(bad_above))
    return panel.with_target(_target((expr, ""), "A"))


def facts(title: str, about: str, expr: str, *, span: int = 12) -> table.Panel:
    """The labels of now's series, a row each."""
    panel = table.Panel().title(title).description(about).datasource(SOURCE)
    target = _target((expr, ""), "A").instant().format(PromQueryFormat.TABLE)
    return panel.span(span).height(HEIGHT).with_target(target)


def _target(query: Query, letter: str) -> prometheus.Dataquery:
    expr, legend = query
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(letter)


def _steps(bad_above: float) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color="green"), Threshold(value=bad_above, color="red")]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def quantiles(metric: str, matchers: str, *by: str) -> tuple[Query, ...]:
    """p50, p90 and p99 of a histogram, by labels."""
    labels = ", ".join(("le", *by))
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return tuple(
        (
            f"histogram_quantile({q}, sum by ({labels})"
            f" (rate({metric}_bucket{{{matchers}}}[{W}])))",
            f"{legend} p{100 * q:g}".strip(),
        )
        for q in (0.5, 0.9, 0.99)
    )


def by(label: str, metric: str, matchers: str = "") -> Query:
    """Rate of a counter by one label."""
    return f"sum by ({label}) (rate({metric}{{{matchers}}}[{W}]))", f"{{{{{label}}}}}"
