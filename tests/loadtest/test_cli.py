"""Laws of the commands, each against a real server."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loadtest.cli import load
from loadtest.run import read_run
from tests.conftest import ROOT
from tests.loadtest.server import Behaviour, serving

SMALL = ["--events", "0", "--candidates-median", "5"]
SMALL += ["--deadline-ms", "5000", "--max-lag-ms", "1000"]  # whatever else the machine does


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(load, [*arguments])


@pytest.mark.parametrize(("delay_s", "code"), [(0.0, 0), (0.5, 1)])
def test_run_exits_by_the_goal(tmp_path: Path, delay_s: float, code: int) -> None:
    """0 where the goal was met, 1 where it was missed; the document and the page either way."""
    out = tmp_path / "run.json"
    goal = ["--p99-ms", "499", "--unserved", "0", "--failed", "0"]
    with serving(Behaviour(delay_s=delay_s)) as url:
        stages = ["--stages", "1:20,1:40"]
        done = invoke("run", "--url", url, "--out", str(out), *stages, *goal, *SMALL)
    assert done.exit_code == code, done.output
    run = read_run(out)
    assert run.sent == sum(run.outcomes.values()) > 30
    assert [step.label for step in run.steps] == ["20/s", "40/s"]
    assert "Goal" in out.with_suffix(".html").read_text()
    assert ("missed: p99" in done.output) == bool(code)


def test_find_writes_its_trials(tmp_path: Path) -> None:
    """The document of a search has the rate found, and one step a trial."""
    out = tmp_path / "find.json"
    bounds = ["--low", "20", "--high", "40", "--trial-s", "0.3", "--repeats", "1"]
    goal = ["--p99-ms", "2000", "--unserved", "0"]
    with serving(Behaviour()) as url:
        done = invoke("find", "--url", url, "--out", str(out), *bounds, *goal, *SMALL)
    assert done.exit_code == 0, done.output
    run = read_run(out)
    assert run.tool == "search"
    assert run.settings["found_rate_per_s"] == 40
    assert len(run.steps) == 2


def test_reports_and_comparisons_read_what_runs_write(tmp_path: Path) -> None:
    """`report` makes the page again from the JSON; a run compared with itself changed nothing."""
    out = tmp_path / "run.json"
    with serving(Behaviour()) as url:
        invoke("run", "--url", url, "--out", str(out), "--stages", "0.5:40", *SMALL)
    before = out.with_suffix(".html").read_text()
    out.with_suffix(".html").unlink()
    assert invoke("report", str(out)).exit_code == 0
    assert out.with_suffix(".html").read_text() == before
    done = invoke("compare", str(out), str(out), "--json")
    comparison = json.loads(done.output)
    assert {row["ratio"] for row in comparison["rows"]} <= {1.0, None}
    assert comparison["different"] == {}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--stages", "5"], "expected SECONDS:LEVEL"),
        (["--stages", "100:1000", "--most-requests", "500"], "at most 500 are allowed"),
        (["--bad", "2"], "bad: expected a share"),
        (["--url", "127.0.0.1:8000"], "expected http://HOST:PORT"),
        (["--header", "no colon"], "expected NAME:VALUE"),
    ],
)
def test_a_flag_that_cannot_be_used_is_named(flags: list[str], complaint: str) -> None:
    """What the caller got wrong is one line, and nothing is sent."""
    done = invoke("run", *flags)
    assert done.exit_code == 1
    assert complaint in done.output
    assert "Traceback" not in done.output


def test_header_values_stay_out_of_the_report(tmp_path: Path) -> None:
    """A header reaches the server; its value, perhaps a secret, is not written down."""
    out, behaviour = tmp_path / "run.json", Behaviour()
    with serving(behaviour) as url:
        header = ["--header", "X-Api-Key: open sesame"]
        invoke("run", "--url", url, "--out", str(out), "--stages", "0.2:20", *header, *SMALL)
    assert behaviour.keys == {"open sesame"}
    assert "sesame" not in out.read_text() + out.with_suffix(".html").read_text()


@pytest.mark.parametrize(("delay_s", "code"), [(0.0, 0), (0.5, 1)])
def test_locust_writes_the_same_document(tmp_path: Path, delay_s: float, code: int) -> None:
    """Locust's users are judged, reported and passed or failed as open-loop runs are."""
    if find_spec("locust") is None:  # not imported here: it would patch this process's threads
        pytest.skip("NOT CHECKED: needs the extra `load`")
    out = tmp_path / "locust.json"
    with serving(Behaviour(delay_s=delay_s)) as url:
        flags = ["--headless", "--only-summary", "--host", url, "--stages", "1:2,4:8"]
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.cli", "locust", *flags, "--out", str(out)],
            cwd=ROOT,
            env={
                **os.environ,
                "LOAD_P99_MS": "499",
                "LOAD_DEADLINE_MS": "5000",
                "LOAD_EVENTS": "0",
            },
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == code, done.stderr
    run = read_run(out)
    assert run.tool == "locust"
    assert run.generator.loop == "closed"
    assert run.goal.p99_ms == 499
    assert run.sent == sum(run.outcomes.values()) > 3
    assert "backend" in run.stages
    assert "Goal" in out.with_suffix(".html").read_text()
