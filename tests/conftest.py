"""Fixtures shared by all folders of tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Speed is measured in benchmarks, never in timed tests.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Threads of numerical libraries that wait by spinning slow a busy machine down many times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MTGR_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Vectors of the independent implementation; tests that need them skip loudly without."""
    path = SHARED / "golden"
    if not path.is_dir():
        pytest.skip(f"NOT CHECKED: no golden vectors at {path} (set MTGR_SHARED)")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu`, loudly, where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only where a test needs it

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="NOT CHECKED: needs an NVIDIA GPU"))
