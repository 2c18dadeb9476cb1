"""The promotion gate: a better package takes the link over, any other is refused with reasons."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from engine_build.package import build_package
from engine_build.promotion import promote_command
from engine_build.runtime.engine import Engine
from engine_build.runtime.package import open_package
from model_def.batch import pack
from model_def.checkpoint import Checkpoint, save
from model_def.config import PackageConfig
from model_def.data.attribution import Label, Windows
from model_def.data.join import join
from model_def.served import ServedRequest, to_record
from service.request_log import write_file
from tests.model_def import cases
from tests.model_def.served_examples import write_labels

DAY_MS = 86_400_000
LOOSE = {"psi": 100, "ne-rise": 100, "miscalibration": 100, "latency-ratio": 100}
"""Thresholds that untrained models need; each test tightens one."""


@dataclass(frozen=True)
class Gate:
    """A serving package behind its link, a candidate that ranks better, and a day's logs."""

    root: Path

    @property
    def link(self) -> Path:
        """As the gateway follows it."""
        return self.root / "live"

    @property
    def report(self) -> dict[str, object]:
        """What the last run wrote."""
        found: dict[str, object] = json.loads((self.root / "report.json").read_text())
        return found

    def promote(self, candidate: str, *more: str, **limits: float) -> Result:
        """Run the command."""
        arguments = [str(self.root / candidate), str(self.link), str(self.root / "logs")]
        for name, value in (LOOSE | {k.replace("_", "-"): v for k, v in limits.items()}).items():
            arguments += [f"--max-{name}", str(value)]
        arguments += ["--report", str(self.root / "report.json"), *more]
        return CliRunner().invoke(promote_command, arguments)


def build(root: Path, version: str, seed: int) -> Path:
    model = cases.model(seed=seed)
    config = PackageConfig(version=version, model=model.config, features=cases.SCHEMA)
    save(root / f"{version}.checkpoint", Checkpoint(config, model, cases.id_tables(), {}))
    build_package(
        root / f"{version}.checkpoint", root / version, ["onnx-cpu"], progress=lambda step: None
    )
    return root / version


def serve(engine: Engine, number: int) -> ServedRequest:
    """A request of 12 candidates of which the best 8 are answered, on the second of two days."""
    sample = cases.sample(number, counts=(12,))
    sample.candidates["ids"][:, 0] = np.random.default_rng(number).permutation(80)[:12]
    sample.context["time_ms"] += (number % 2) * DAY_MS
    tasks = engine.run(pack(cases.SCHEMA, sample)).tasks
    return ServedRequest(
        request_id=f"r{number}",
        user_id=f"u{number % 20}",
        scene="home",
        model_version="v1",
        sample=sample,
        ranked_by="model",
        reason=None,
        answered=np.argsort(-tasks["ctcvr"])[:8],
        scores=tasks["ctcvr"],
        tasks=tasks,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Package v1 served 240 requests, and users click as v2 says."""
    root = tmp_path_factory.mktemp("promotion")
    old, new = (open_package(build(root, f"v{i}", i)).load_engine() for i in (1, 2))
    served = [serve(old, number) for number in range(240)]
    records = [to_record(cases.SCHEMA, one) for one in served]
    write_file(root / "requests", "requests-1.parquet", cases.SCHEMA, records)
    labels = []
    rng = np.random.default_rng(0)
    for one in served:
        wanted = new.run(pack(cases.SCHEMA, one.sample)).tasks["ctr"] + rng.normal(0, 1e-3, 12)
        for place in one.answered.tolist():
            item = int(one.sample.candidates["ids"][place, 0])
            labels.append(Label(one.time_ms, one.request_id, item, "exposure"))
            if wanted[place] > np.quantile(wanted, 0.7):
                labels.append(Label(one.time_ms + 1, one.request_id, item, "click"))
                if place % 2:
                    labels.append(Label(one.time_ms + 2, one.request_id, item, "order"))
    write_labels(root / "labels/labels-1.parquet", labels)
    join(root / "requests", root / "labels", root / "logs", Windows(), 10**14)
    return root


@pytest.fixture
def gate(made: Path, tmp_path: Path) -> Gate:
    """The same, with a link of the test's own."""
    for name in ("v1", "v2", "logs"):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "live").symlink_to(made / "v1")
    return Gate(tmp_path)


def test_a_better_candidate_takes_the_link(gate: Gate, made: Path) -> None:
    """The link points at it, and the report says what was compared: the newest day alone."""
    result = gate.promote("v2")
    assert result.exit_code == 0, result.output
    assert gate.link.resolve() == (made / "v2").resolve()
    report = gate.report
    assert report["promoted"] is True
    assert report["requests"] == 120
    candidate, serving = report["candidate"], report["serving"]
    assert isinstance(candidate, dict)
    assert isinstance(serving, dict)
    assert candidate["ctr"]["gauc_user"] > serving["ctr"]["gauc_user"] + 0.1


def test_what_was_served_is_scored_again_to_the_same_gauc(gate: Gate) -> None:
    """From the joined log, by the same engine: GAUC within 1e-6 of that of the served scores."""
    assert gate.promote("v2", "--dry-run").exit_code == 0
    replay = gate.report["replay"]
    assert isinstance(replay, dict)
    assert set(replay) == {"ctr", "ctcvr"}
    for pair in replay.values():
        assert abs(pair["gauc_served"] - pair["gauc_again"]) <= 1e-6
        assert pair["largest_difference"] <= 1e-6
        assert pair["exposures"] == 120 * 8


def test_a_worse_candidate_is_refused_and_the_link_stays(gate: Gate, made: Path) -> None:
    """It fails, with a reason for each task that lost."""
    gate.link.unlink()
    gate.link.symlink_to(made / "v2")
    result = gate.promote("v1")
    assert result.exit_code == 1
    assert "refused: ctr: GAUC by user" in result.output
    assert gate.link.resolve() == (made / "v2").resolve()
    assert gate.report["promoted"] is False
    assert gate.report["reasons"]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"psi": 0.0}, "scene home: scores moved"),
        ({"miscalibration": 0.0}, "predicts"),
        ({"ne_rise": -1.0}, "NE"),
        ({"latency_ratio": 0.001}, "latency"),
    ],
)
def test_each_threshold_refuses_for_its_own_reason(
    gate: Gate, limit: dict[str, float], reason: str
) -> None:
    """Calibration, drift and latency count beside ranking."""
    result = gate.promote("v2", **limit)
    assert result.exit_code == 1
    reasons = [line for line in result.output.splitlines() if line.startswith("refused")]
    assert reasons
    assert all(reason in line for line in reasons)


def test_a_dry_run_moves_nothing(gate: Gate, made: Path) -> None:
    """It compares and writes the report."""
    assert gate.promote("v2", "--dry-run").exit_code == 0
    assert gate.link.resolve() == (made / "v1").resolve()
    assert gate.report["promoted"] is False


def test_a_log_that_is_not_what_was_served_is_refused(gate: Gate, made: Path) -> None:
    """Scores that the logged features do not give: another model's, under this one's version."""
    other = open_package(made / "v2").load_engine()
    records = [to_record(cases.SCHEMA, serve(other, number)) for number in range(240)]
    write_file(gate.root / "requests", "requests-1.parquet", cases.SCHEMA, records)
    join_again(gate, gate.root / "requests", made / "labels")
    result = gate.promote("v2")
    assert result.exit_code == 1
    assert "what is logged is not what was served" in result.output


def join_again(gate: Gate, requests: Path, labels: Path) -> None:
    """Other logs in place of the gate's."""
    (gate.root / "logs").unlink()
    join(requests, labels, gate.root / "logs", Windows(), 10**14)


def test_a_day_without_a_click_proves_nothing(gate: Gate, made: Path) -> None:
    """Zero positives are a reason, and no number is made up for what is undefined."""
    labels = pq.read_table(made / "labels/labels-1.parquet")
    shown = labels.filter(pc.equal(labels["action"], "exposure"))
    (gate.root / "labels").mkdir()
    pq.write_table(shown, gate.root / "labels/labels-1.parquet")
    join_again(gate, made / "requests", gate.root / "labels")
    result = gate.promote("v2")
    assert result.exit_code == 1
    assert "ctr: 0 positives of 960 labelled exposures" in result.output
    candidate = gate.report["candidate"]
    assert isinstance(candidate, dict)
    assert candidate["ctr"]["gauc_user"] is None


def test_too_few_requests_prove_nothing(gate: Gate) -> None:
    """However good the candidate looks on them."""
    result = gate.promote("v2", "--min-requests", "121")
    assert result.exit_code == 1
    assert "120 requests: at least 121 are needed" in result.output


def test_only_a_link_can_be_moved(gate: Gate, made: Path) -> None:
    """A package itself is never replaced."""
    gate.link.unlink()
    shutil.copytree(made / "v1", gate.link)
    result = gate.promote("v2")
    assert result.exit_code == 1
    assert "is no symbolic link" in result.output
