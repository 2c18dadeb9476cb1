"""Prometheus and promtool: those of this machine, or the ones `make test` unpacks."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT

UNPACKED = ROOT / "build" / "prometheus" / "usr" / "bin"
"""Where `make build/prometheus` puts them."""


def program(name: str) -> str:
    """The path of `name`; a test that needs it skips loudly without."""
    found = shutil.which(name) or shutil.which(name, path=UNPACKED)
    if found is None:
        pytest.skip(f"NOT CHECKED: no {name} on this machine; run 'make build/prometheus'")
    return found


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's own linter and unit tester of rules."""
    return program("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    """The server."""
    return program("prometheus")


@pytest.fixture(scope="session")
def rules_file() -> Path:
    """The rules as they are shipped."""
    return ROOT / "helm" / "files" / "rules.yaml"
