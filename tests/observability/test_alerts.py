"""Rules and alerts: valid, unit-tested each way, named after what exists, with a page for each."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.observability.alerts import ALERTS
from service.observability.rules import RUNBOOKS, rules
from tests.conftest import ROOT

CASES = sorted(Path(__file__).parent.glob("*.test.yaml"))
SECTIONS = ("## What it means", "## How to confirm", "## What to do")


def checked(*command: str | Path) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_shipped_rules_are_those_of_the_code(rules_file: Path) -> None:
    """`make observability` was run after the last change."""
    assert yaml.safe_load(rules_file.read_text()) == rules()


def test_rules_are_valid(promtool: str, rules_file: Path) -> None:
    """`promtool check rules`."""
    assert "SUCCESS" in checked(promtool, "check", "rules", rules_file)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.split(".")[0])
def test_alerts_fire_when_they_must_and_only_then(
    case: Path, promtool: str, tmp_path: Path
) -> None:
    """`promtool test rules`. Annotations are left out: what they say is no part of when."""
    document = rules()
    for group in document["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(document))
    tests = yaml.safe_load(case.read_text()) | {"rule_files": ["rules.yaml"]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    checked(promtool, "test", "rules", tmp_path / "tests.yaml")


def test_every_alert_is_tested_firing_and_silent() -> None:
    """So that none is forgotten."""
    fired: set[str] = set()
    silent: set[str] = set()
    for case in CASES:
        for test in yaml.safe_load(case.read_text())["tests"]:
            for expected in test["alert_rule_test"]:
                labels = [alert["exp_labels"] for alert in expected["exp_alerts"]]
                (fired if labels else silent).add(expected["alertname"])
                if labels and len(series_apart(test)) > 1:
                    silent.add(expected["alertname"])  # of the other series, in the same test
    names = {alert.name for alert in ALERTS}
    assert fired == names
    assert silent == names


def series_apart(test: dict[str, Any]) -> set[str]:
    """Scenes, models, instances and outcomes that a test's series tell apart."""
    found = set()
    for series in test["input_series"]:
        labels = series["series"].partition("{")[2].rstrip("}").split(",")
        keys = ("scene", "model", "instance", "outcome", "task")
        found |= {label for label in labels if label.split("=")[0] in keys}
    return found


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_has_a_runbook(alert: Any) -> None:
    """It says what the alert means, how to confirm it and what to do, in that order."""
    page = ROOT / RUNBOOKS / f"{alert.name}.md"
    text = page.read_text()
    assert text.startswith(f"# {alert.name}\n")
    places = [text.index(section) for section in SECTIONS]
    assert places == sorted(places)
    assert {path.stem for path in page.parent.glob("Mtgr*.md")} == {a.name for a in ALERTS}
