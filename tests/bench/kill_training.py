"""Kills a training at random points and compares the weights with those of one left alone.

python -m tests.bench.kill_training [--kills 20]
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = ("weights.safetensors", "id_tables.npz", "id_uses.npz", "config.json", "curves.csv")
TRAIN = ["--version", "v1", "--epochs", "4", "--batch-tokens", "600", "--save-every", "3"]


def mtgr(*arguments: str) -> list[str]:
    """The command line of `mtgr`."""
    return [sys.executable, "-m", "mtgr", *arguments]


def compare(directory: Path, kills: int, seed: int = 0) -> None:
    """Train once alone, and once with `kills` SIGKILLs; AssertionError where a byte differs.

    Each kill comes at a random moment between the first step that a run takes (its curves or
    state change) and the time that all steps took alone; a training that ends before its kill is
    begun anew, so that every kill counts.
    """
    logs, rng = directory / "logs", random.Random(seed)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    city = ("--days", "2", "--users", "40", "--items", "60")
    subprocess.run(mtgr("simulate", str(logs), *city), check=True, **quiet)
    alone, killed = directory / "alone", directory / "killed"
    process = subprocess.Popen(mtgr("train", str(logs), str(alone), *TRAIN), **quiet)
    _first_step(process, alone)
    started = time.monotonic()
    assert process.wait() == 0
    whole = time.monotonic() - started
    done = finished = 0
    while done < kills:
        process = subprocess.Popen(mtgr("train", str(logs), str(killed), *TRAIN), **quiet)
        _first_step(process, killed)
        try:
            process.wait(rng.uniform(0, 1.2 * whole / min(kills, 4)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            continue
        assert process.returncode == 0
        _same(alone, killed)
        finished += 1
    subprocess.run(mtgr("train", str(logs), str(killed), *TRAIN), check=True, **quiet)
    _same(alone, killed)
    left = sorted(path.name for path in directory.iterdir())
    assert left == ["alone", "killed", "logs"], left
    print(f"{done} kills, {finished + 1} trainings ended: {len(FILES)} files equal in every byte")  # noqa: T201  # a benchmark's output


def _first_step(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until the run has begun to train, or has ended."""
    path = out.with_name(f"{out.name}.training")
    before = _stamps(path)
    while process.poll() is None and _stamps(path) == before:
        time.sleep(0.01)


def _stamps(path: Path) -> list[int]:
    return [file.stat().st_mtime_ns for file in sorted(path.glob("*.csv"))]


def _same(alone: Path, killed: Path) -> None:
    for name in FILES:
        assert (alone / name).read_bytes() == (killed / name).read_bytes(), f"{name} differs"


def main() -> int:
    """Print what was compared; AssertionError where a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        compare(Path(directory), arguments.kills, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
