"""`tests.bench.stolen`: what was taken lies in the second in which it was."""

import numpy as np

from tests.bench.stolen import looking, taken


def test_what_was_taken_lies_in_its_second() -> None:
    """Between two looks it is spread evenly; a second that is not whole is left out."""
    looks = [(9.9, 1.0), (10.5, 1.0), (10.6, 1.1), (10.9, 1.1), (11.1, 1.3), (12.9, 1.3)]
    np.testing.assert_allclose(taken(looks, 10.0, 2.9), [0.2, 0.1])


def test_looks_are_in_order_and_cover_the_block() -> None:
    """Even a short one; nothing is given back."""
    with looking() as looks:
        pass
    (start, before), *_, (end, after) = looks
    assert start <= end
    assert before <= after
