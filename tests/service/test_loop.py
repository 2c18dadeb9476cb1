"""The closed loop in small: every part real, each command run as an engineer would."""

import json
from pathlib import Path

from click.testing import CliRunner

from model_def.data.parquet import read_logs
from service.loop import loop


def test_one_round_serves_learns_and_is_judged(tmp_path: Path) -> None:
    """What was served is joined without a rejected row, scored again to the same GAUC within 1e-6,
    and a successor is built and judged; nobody was degraded."""
    out = tmp_path / "loop"
    arguments = ["--out", str(out), "--rounds", "1", "--users", "14", "--items", "60"]
    arguments += ["--days", "2", "--epochs", "1", "--candidates", "12", "--top-k", "6"]
    result = CliRunner().invoke(loop, arguments)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if line[:6].strip().isdigit()]
    assert [row[0] for row in rows] == ["0", "1"]
    assert rows[0][1] == "cold"
    assert "; 0 answers degraded" in result.output

    logs, rejects = read_logs(out / "logs")
    assert len(rejects) == 0
    assert len(logs.requests.request_id) == int(rows[0][2])
    assert (logs.requests.candidate_counts == 6).all()
    assert logs.requests.click.any()
    report = json.loads((out / "round-1.promotion.json").read_text())
    assert report["replay"]
    for pair in report["replay"].values():
        assert abs(pair["gauc_served"] - pair["gauc_again"]) <= 1e-6
    served_by = "round-1" if report["promoted"] else "cold"
    assert rows[1][1] == served_by
    assert (out / "live").resolve().name == served_by
