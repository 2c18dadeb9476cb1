"""The commands simulate, train and evaluate, end to end on a very small city."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from model_def.checkpoint import load
from model_def.cli import simulate, train
from model_def.cli_evaluate import evaluate
from model_def.cli_prune import prune
from model_def.prune import Rule

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
    page = tmp_path / "report.html"
    arguments = [str(tmp_path / "m"), str(logs), "--json", "--report", str(page)]
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["held_out"] == said["held_out"]
    assert found["best_reachable"][0]["auc"] > 0.7
    assert f"{said['held_out'][0]['auc']:.4f}" in page.read_text()
    assert page.read_text().count("<svg") == 6
    for kind in ("scene", "history"):
        parts = [s for s in found["slices"] if s["kind"] == kind and s["task"] == "ctr"]
        assert sum(s["exposures"] for s in parts) == found["held_out"][0]["exposures"]
        assert sum(s["positives"] for s in parts) == found["held_out"][0]["positives"]


def test_logs_of_another_schema_are_refused(logs: Path, tmp_path: Path) -> None:
    """A checkpoint is not scored on logs of another schema, and each difference is listed."""
    assert run_train(logs, tmp_path / "m").exit_code == 0
    other = tmp_path / "logs"
    shutil.copytree(logs, other)
    schema = json.loads((other / "schema.json").read_text())
    schema["cross"] = [f for f in schema["cross"] if f["name"] != "eta_minutes"]
    schema["profile"][0]["size"] = 9
    schema["lifelong_cap"] = 10
    (other / "schema.json").write_text(json.dumps(schema))
    result = CliRunner().invoke(evaluate, [str(tmp_path / "m"), str(other)])
    assert result.exit_code == 1
    for line in (
        "profile.age_group.size: 6 there, 9 here",
        "item.eta_minutes: a number there, nothing here",
        "lifelong_cap: 1000 there, only 10 here",
    ):
        assert line in result.output


def test_prune_keeps_the_most_frequent_ids(logs: Path, tmp_path: Path) -> None:
    """A pruned checkpoint holds the most frequent ids with their embeddings, scores as text says,
    and is not pruned again."""
    assert run_train(logs, tmp_path / "m").exit_code == 0
    arguments = [str(tmp_path / "m"), str(logs), str(tmp_path / "p")]
    result = CliRunner().invoke(prune, [*arguments, "--keep", "0.5"])
    assert result.exit_code == 0, result.output
    before, after = (load(tmp_path / name) for name in "mp")
    kept = after.id_tables["item_id"].ids
    assert len(kept) == round(0.5 * len(before.id_tables["item_id"].ids))
    assert f"{len(kept) + 1} rows" in result.output
    uses = before.uses["item_id"]
    left = uses["count"][~np.isin(uses["id"], kept)]
    assert uses["count"][np.isin(uses["id"], kept)].min() >= left.max()
    rows = [
        checkpoint.model.embeddings.values["item_id"].detach() for checkpoint in (before, after)
    ]
    places = np.flatnonzero(np.isin(before.id_tables["item_id"].ids, kept))
    assert torch.equal(rows[0][torch.from_numpy(places) + 1], rows[1][1:])
    assert torch.equal(rows[0][0], rows[1][0])
    assert "GAUC by request" in result.output
    again = CliRunner().invoke(prune, [str(tmp_path / "p"), str(logs), str(tmp_path / "q")])
    assert again.exit_code == 1
    assert "not pruned yet" in again.output
    stale = Rule(max_age_days=1e-9).kept(uses)
    assert np.array_equal(stale, uses["seen_ms"] == uses["seen_ms"].max())
    assert np.array_equal(Rule(min_count=50).kept(uses), uses["count"] >= 50)


def test_without_cross_features(logs: Path, tmp_path: Path) -> None:
    """`--no-cross` trains a model whose schema has none, and evaluate leaves them out too."""
    result = run_train(logs, tmp_path / "m", "--no-cross", "--groups", "one", "--mask", "causal")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["features"]["cross"] == []
    assert len(config["model"]["token_groups"]) == 1
    assert CliRunner().invoke(evaluate, [str(tmp_path / "m"), str(logs)]).exit_code == 0


def test_traffic_file_holds_requests_users_and_events(logs: Path) -> None:
    """Beside the logs lies traffic for the load test: one thing a line."""
    lines = [json.loads(line) for line in (logs / "traffic.jsonl").read_text().splitlines()]
    assert {key for line in lines for key in line} == {"rank", "user_id", "event"}


def test_one_task(logs: Path, tmp_path: Path) -> None:
    """A model of one task is trained and reported on that task alone."""
    result = run_train(logs, tmp_path / "m", "--tasks", "ctr")
    assert result.exit_code == 0, result.output
    assert "ctcvr" not in result.output
    assert not (tmp_path / "m.training").exists()


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
