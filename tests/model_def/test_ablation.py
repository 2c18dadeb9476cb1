"""Ablation: what each variant changes, and the tables that are printed."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from model_def.ablation import FULL, START_MS, TRUTH, VARIANTS, Result, without_cross
from model_def.ablation_table import as_text, interval
from model_def.cli_ablate import ablate
from model_def.config import PRESETS
from model_def.data.samples import joined, task_labels, training_samples
from model_def.data.simulate import simulate
from model_def.data.simulator import SCHEMA as CITY
from model_def.data.simulator import Marketplace
from model_def.id_table import IdTable
from model_def.model import MTGR, to_tensors
from tests.model_def.log_examples import SCHEMA, random_logs


def logits(mask: str, *, as_served: bool) -> torch.Tensor:
    """Of one model's random logs, in the order of their exposures."""
    config = PRESETS["tiny"].model_copy(update={"mask": mask})
    torch.manual_seed(0)
    model = MTGR(config, SCHEMA, {"item_id": IdTable(range(-9, 50))})
    logs = random_logs(3, users=2, requests=12, events=40)
    sample = joined(list(training_samples(logs, as_served=as_served)), SCHEMA)
    with torch.inference_mode():
        found = model(to_tensors(sample.batch))
    return found[torch.from_numpy(sample.rows).argsort()]


def test_a_causal_order_leaks_in_training_windows_alone() -> None:
    """As served, where every event precedes the request, both masks are one; in a window that
    holds later events the causal order reads them, and the dynamic mask does not."""
    served = logits("dynamic", as_served=True)
    torch.testing.assert_close(logits("causal", as_served=True), served, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits("dynamic", as_served=False), served, rtol=0, atol=1e-5)
    assert float((logits("causal", as_served=False) - served).abs().max()) > 1e-3


def test_simulated_windows_hold_what_a_causal_order_leaks() -> None:
    """Most clicks of a user's day stand in its window's real-time sequence, by item and later
    than their exposure: hidden by the dynamic mask, and there to read without it."""
    logs = simulate(Marketplace(40, 60, seed=0), START_MS, days=3).logs
    clicked = task_labels(logs.requests, ("ctr",))[:, 0] == 1
    revealed = 0
    for sample in training_samples(logs):
        arrays = sample.batch.arrays
        events = arrays["realtime_ids"]
        for row, visible in zip(sample.rows, arrays["candidate_visible"], strict=True):
            item = logs.requests.candidates["ids"][row, CITY.item_place]
            revealed += bool(clicked[row] and item in events[visible:])
    assert revealed > clicked.sum() / 2


def test_logs_without_cross_features() -> None:
    """Only the cross features are gone; everything else is as it was."""
    logs = random_logs(1)
    less = without_cross(logs)
    assert [f.name for f in less.schema.candidate] == ["item_id", "price"]
    assert (less.requests.candidates["ids"] == logs.requests.candidates["ids"]).all()
    price = logs.requests.candidates["numbers"][:, :1]
    assert (less.requests.candidates["numbers"] == price).all()


def test_interval_is_students() -> None:
    """Mean and half-width of five values, as a table of t gives them."""
    middle, half = interval([1, 2, 3, 4, 5])
    assert middle == 3
    assert half == pytest.approx(2.776 * 2.5**0.5 / 5**0.5)


def result(variant: str, seed: int, value: float) -> Result:
    """Every metric the same."""
    metrics = {f"{task}_{name}": value for task in ("ctr", "ctcvr") for name in ("auc", "gauc")}
    return Result(variant, seed, metrics, metrics, value)


def test_differences_are_within_a_seed() -> None:
    """Seeds that differ widely do not hide a variant that always loses the same."""
    results = []
    for seed, level in enumerate((0.6, 0.7, 0.8)):
        results += [result(FULL.name, seed, level), result(TRUTH, seed, level + 0.05)]
        results += [result("w/o GLN", seed, level - 0.01)]
    text = as_text(results)
    assert "0.7000 ± 0.2484" in text
    changes = [line for line in text.splitlines() if "-0.0100 ± 0.0000" in line]
    assert len(changes) == 2  # as served, and what offline evaluation would see
    assert "best reachable" in text
    assert "-0.0500 ± 0.0000" in text


def test_ablate_goes_on_and_prints(tmp_path: Path) -> None:
    """The command keeps each run's result, runs only what is missing, the same in however many
    processes, and prints both tables."""
    out = tmp_path / "out"
    city = ["--days", "3", "--users", "25", "--items", "40", "--epochs", "1"]
    arguments = [str(out), "--variant", "w/o cross features", "--seeds", "1", *city]
    assert CliRunner().invoke(ablate, arguments).exit_code == 0
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.0.json")}
    assert len(kept) == 2
    mtgr = out / "mtgr.0.json"
    first = mtgr.read_bytes()
    mtgr.unlink()
    printed = CliRunner().invoke(ablate, [*arguments, "--jobs", "2"])
    assert mtgr.read_bytes() == first
    assert "Table 3" in printed.output
    assert "w/o cross features" in printed.output
    path = out / "wo-cross-features.0.json"
    assert path.stat().st_mtime_ns == kept[path]
    other = CliRunner().invoke(ablate, [*arguments, "--epochs", "2"])
    assert other.exit_code == 1
    assert "epochs: 1 there, 2 here" in other.output
    wrong = CliRunner().invoke(ablate, [str(out), "--variant", "w/o luck"])
    assert wrong.exit_code == 1
    assert list(VARIANTS)[1] in wrong.output
