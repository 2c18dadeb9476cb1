"""The commands simulate, train and evaluate, end to end on a very small city."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from model_def.cli import evaluate, simulate, train

CITY = ["--days", "2", "--users", "30", "--items", "60"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated logs."""
    path = tmp_path_factory.mktemp("cli") / "logs"
    result = CliRunner().invoke(simulate, [str(path), *CITY])
    assert result.exit_code == 0, result.output
    return path


def run_train(logs: Path, out: Path, *more: str) -> Result:
    """`mtgr train` of one epoch."""
    return CliRunner().invoke(train, [str(logs), str(out), "--epochs", "1", *more])


def test_simulate_train_evaluate(logs: Path, tmp_path: Path) -> None:
    """The three commands follow each other; evaluate repeats what train reported, and the best."""
    trained = run_train(logs, tmp_path / "m", "--version", "v7")
    assert trained.exit_code == 0, trained.output
    assert "version v7" in trained.output
    said = json.loads((tmp_path / "m" / "training.json").read_text())
    result = CliRunner().invoke(evaluate, [str(tmp_path / "m"), str(logs), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["held_out"] == said["held_out"]
    assert found["best_reachable"][0]["auc"] > 0.7


def test_traffic_file_holds_requests_users_and_events(logs: Path) -> None:
    """Beside the logs lies traffic for the load test: one thing a line."""
    lines = [json.loads(line) for line in (logs / "traffic.jsonl").read_text().splitlines()]
    assert {key for line in lines for key in line} == {"rank", "user_id", "event"}


def test_one_task(logs: Path, tmp_path: Path) -> None:
    """A model of one task is trained and reported on that task alone."""
    result = run_train(logs, tmp_path / "m", "--tasks", "ctr")
    assert result.exit_code == 0, result.output
    assert "ctcvr" not in result.output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "likes"], "'ctr' or 'ctcvr'"),
        (["--until", "2001-01-01"], "no exposures"),
        (["--preset", "huge"], "'tiny'"),
        (["--learning-rate", "0"], "greater than 0"),
    ],
)
def test_bad_options_are_explained(
    logs: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    """A wrong option is refused in words, before anything is written."""
    result = run_train(logs, tmp_path / "m", *more)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "m").exists()


def test_not_logs(tmp_path: Path) -> None:
    """A directory without logs is refused with the file that it lacks."""
    result = run_train(tmp_path, tmp_path / "m")
    assert result.exit_code == 1
    assert "schema.json: not found" in result.output


def test_rejected_rows_are_listed(logs: Path, tmp_path: Path) -> None:
    """Rows that cannot be used are counted on the terminal and listed beside the logs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in logs.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = pq.read_table(tmp_path / "exposures.parquet").to_pylist()
    rows[3]["candidate.category"] = 99
    schema = pq.read_schema(tmp_path / "exposures.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "exposures.parquet")
    result = run_train(tmp_path, tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "rejected 1 rows of exposures.parquet: candidate.category" in result.output
    assert "exposures.parquet,3," in (tmp_path / "rejects.csv").read_text()
