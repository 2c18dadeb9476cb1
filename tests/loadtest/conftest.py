"""Small traffic, drawn once: most tests are about what comes back."""

import pytest

from loadtest.material import MARKETPLACE, Material, read_material
from loadtest.traffic import Mix, Traffic


@pytest.fixture(scope="session")
def material() -> Material:
    """Made from the description of the demo's features."""
    return read_material(MARKETPLACE)


@pytest.fixture(scope="session")
def traffic(material: Material) -> Traffic:
    """Valid ranking requests of a few candidates, with a patience of 300 ms."""
    mix = Mix(bad=0, events=0, candidates_median=5, candidates_max=10, deadline_ms=300)
    return Traffic(material, mix, sessions=32)
