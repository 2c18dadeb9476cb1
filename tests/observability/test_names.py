"""Dashboards and rules name only what exists, in Grafana's and Prometheus's own terms."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from service.metrics import Metrics
from service.observability.boards import boards
from service.observability.files import FILES, files
from service.observability.names import exported, nameable, named
from service.observability.rules import rules

BOARDS = [board.build() for board in boards()]


def queries(board: Dashboard) -> Iterator[tuple[str, str]]:
    """Title and PromQL of every panel, Grafana's variables filled in."""
    for panel in board.panels or []:
        for target in getattr(panel, "targets", None) or []:
            expr = target.expr.replace("$__rate_interval", "30s").replace("$scene", ".*")
            yield panel.title, expr


def test_shipped_files_are_those_of_the_code() -> None:
    """`make observability` was run after the last change, and nothing else lies there."""
    wanted = files()
    assert {path for path in FILES.rglob("*") if path.is_file()} == set(wanted)
    for path, text in wanted.items():
        assert path.read_text() == text, f"{path.name}: run 'make observability'"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_dashboards_name_only_what_is_exported(board: Dashboard) -> None:
    """A panel over a metric that does not exist would be empty for ever."""
    for title, expr in queries(board):
        assert named(expr), (title, expr)
        assert named(expr) <= nameable(), f"{title}: {named(expr) - nameable()}"


def test_rules_name_only_what_is_exported() -> None:
    """An alert on a metric that does not exist would be silent for ever."""
    for group in rules()["groups"]:
        for rule in group["rules"]:
            unknown = named(rule["expr"]) - nameable()
            assert not unknown, f"{rule.get('alert') or rule['record']}: {unknown}"


def test_a_metric_that_goes_away_is_noticed() -> None:
    """The two tests above can fail: each metric that is named is missed once it is gone."""
    used = {name for board in BOARDS for _, expr in queries(board) for name in named(expr)}
    entries = Metrics().catalogue.entries
    gone = next(entry for entry in entries if entry.name == "mtgr_degraded_total")
    assert "mtgr_degraded_total" in used
    assert "mtgr_degraded_total" not in exported([e for e in entries if e is not gone])
    assert named('rate(mtgr_degradd_total{reason="mtgr_x"}[5m])') == {"mtgr_degradd_total"}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_dashboards_are_valid_grafana(board: Dashboard) -> None:
    """The shipped JSON reads back as Grafana's dashboard model; ids and places are its own."""
    text = (FILES / "dashboards" / f"{board.uid}.json").read_text()
    again = Dashboard.from_json(yaml.safe_load(text))
    panels = again.panels or []
    assert [panel.title for panel in panels] == [panel.title for panel in board.panels or []]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel.grid_pos
        assert at is not None
        cells = {(at.x + i, at.y + j) for i in range(at.w) for j in range(at.h)}
        assert at.x + at.w <= 24
        assert not cells & taken, f"{panel.title} lies on another panel"
        taken |= cells


def test_every_query_is_valid_promql(promtool: str, tmp_path: Path) -> None:
    """As rules, which promtool parses."""
    every = [expr for board in BOARDS for _, expr in queries(board)]
    recorded = [{"record": f"q{i}", "expr": expr} for i, expr in enumerate(every)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
