"""`mtgr build` and `mtgr verify` as a model engineer runs them."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine_build.cli import build, verify
from model_def.checkpoint import Checkpoint, save
from tests.model_def import cases


def test_build_says_what_it_made(checkpoint_dir: Path, tmp_path: Path) -> None:
    """Build ends with the package and its engines, and the package passes verify."""
    target = tmp_path / "package"
    built = CliRunner().invoke(build, [str(checkpoint_dir), str(target)])
    assert built.exit_code == 0, built.output
    assert built.stdout.endswith(f"{target}: onnx-cpu\n")
    verified = CliRunner().invoke(verify, [str(target), "--requests", "3"])
    assert verified.exit_code == 0, verified.output
    assert "onnx-cpu: passed, largest score difference" in verified.output


def test_build_without_checkpoint(tmp_path: Path) -> None:
    """A path that is no checkpoint is named, and no package appears."""
    result = CliRunner().invoke(build, [str(tmp_path / "absent"), str(tmp_path / "package")])
    assert result.exit_code == 1
    assert f"{tmp_path / 'absent' / 'config.json'}: not found" in result.output
    assert not list(tmp_path.iterdir())


def test_verify_names_a_changed_file(package_dir: Path, tmp_path: Path) -> None:
    """Verify refuses a changed package by the file's name."""
    copied = Path(shutil.copytree(package_dir, tmp_path / "package"))
    (copied / "config.json").write_text("{}")
    result = CliRunner().invoke(verify, [str(copied)])
    assert result.exit_code == 1
    assert f"{copied / 'config.json'}: sha256" in result.output


@pytest.mark.parametrize("name", ["weights.safetensors", "id_tables.npz"])
def test_foreign_weights_are_refused(
    package_dir: Path, tmp_path: Path, checkpoint: Checkpoint, name: str
) -> None:
    """A package whose weights or id tables are not those its engine came from is refused."""
    copied = Path(shutil.copytree(package_dir, tmp_path / "package"))
    tables = dict(reversed(checkpoint.id_tables.items()))
    save(tmp_path / "other", Checkpoint(checkpoint.config, cases.model(seed=1), tables, {}))
    shutil.copyfile(tmp_path / "other" / name, copied / name)
    result = CliRunner().invoke(verify, [str(copied)])
    assert result.exit_code == 1
    assert f"{copied / name}: sha256" in result.output
