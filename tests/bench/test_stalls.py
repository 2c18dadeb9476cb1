"""`tests.bench.stalls`: waits for a core are seen from outside, and added where they lie."""

import os
import subprocess
import sys
from collections.abc import Iterator
from time import monotonic

import pytest

from tests.bench.stalls import Stall, waited_in, watched

SPIN_S = 0.4


@pytest.fixture
def one_core() -> Iterator[None]:
    """This process and its children on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def test_waits_count_as_far_as_they_lie_between_the_moments() -> None:
    """And those of several threads add up."""
    stalls = [Stall(1.0, 1.02, 0.02), Stall(1.01, 1.03, 0.02), Stall(5.0, 5.5, 0.1)]
    assert waited_in(stalls, 0.9, 1.1) == pytest.approx(0.04)
    assert waited_in(stalls, 1.0, 1.01) == pytest.approx(0.01)
    assert waited_in(stalls, 5.0, 6.0) == pytest.approx(0.1)
    assert waited_in(stalls, 2.0, 4.0) == 0


def test_two_that_want_one_core_wait_for_each_other(one_core: None) -> None:
    """The kernel's word for it reaches us, in our clock."""
    with watched() as stalls, subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        start = monotonic()
        while monotonic() - start < SPIN_S:
            pass
        end = monotonic()
        other.kill()
    assert waited_in(stalls, start, end) > SPIN_S / 4
