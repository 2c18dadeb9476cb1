"""`tests.bench.stolen`: what was taken lies in the second in which it was."""

import os

import numpy as np

from tests.bench.stolen import looking, taken, waited


def test_what_was_taken_lies_in_its_second() -> None:
    """Between two looks it is spread evenly; a second that is not whole is left out."""
    times = (9.9, 1.0), (10.5, 1.0), (10.6, 1.1), (10.9, 1.1), (11.1, 1.3), (12.9, 1.3)
    looks = [(at, total, 0.0) for at, total in times]
    np.testing.assert_allclose(taken(looks, 10.0, 2.9), [0.2, 0.1])


def test_the_longest_wait_between_two_looks_is_told_of_its_second() -> None:
    """Which is that of the later look; none is a second's without looks."""
    looks = [(9.9, 0.0, 5.0), (10.4, 0.0, 5.1), (10.8, 0.0, 5.3), (11.1, 0.0, 5.35)]
    np.testing.assert_allclose(waited(looks, 10.0, 3.0), [0.2, 0.05, 0.0])


def test_looks_are_in_order_and_cover_the_block() -> None:
    """Even a short one; nothing is given back."""
    with looking(os.getpid()) as looks:
        pass
    (start, *before), *_, (end, *after) = looks
    assert start <= end
    assert all(a <= b for a, b in zip(before, after, strict=True))
