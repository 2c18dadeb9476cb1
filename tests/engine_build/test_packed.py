"""One request as one tensor: it crosses whole, and nothing else passes for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine_build.requests import random_request
from engine_build.runtime.packed import HEAD_BYTES, packed_batch, packed_tensor
from engine_build.runtime.tensors import TensorError
from model_def.batch import PackedBatch
from tests.model_def import cases


def request(lifelong: int = 5, realtime: int = 4, candidates: int = 6) -> PackedBatch:
    return random_request(
        cases.SCHEMA, np.random.default_rng(0), lifelong, realtime, candidates
    )  # fmt: skip


def changed(name: str, value: int) -> NDArray[np.uint8]:
    """The tensor of a request with one value of an array changed."""
    batch = request()
    batch.arrays[name][-1] = value
    head = packed_tensor(request())[:HEAD_BYTES]
    return np.concatenate([head, batch.buffer])


@given(st.integers(0, 12), st.integers(0, 5), st.integers(1, 9))
def test_a_request_survives_the_crossing(lifelong: int, realtime: int, candidates: int) -> None:
    """It comes back byte for byte, array for array, and nothing is copied."""
    sent = request(lifelong, realtime, candidates)
    tensor = packed_tensor(sent)
    came = packed_batch(cases.SCHEMA, tensor)
    assert np.shares_memory(came.buffer, tensor)
    assert came.buffer.tobytes() == sent.buffer.tobytes()
    for name, array in sent.arrays.items():
        np.testing.assert_array_equal(came.arrays[name], array)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3), st.integers(-40, 40))
def test_counts_that_are_not_the_buffers_are_refused(counts: list[int], more: int) -> None:
    """Whatever a head claims, of whatever length the buffer is."""
    tensor = packed_tensor(request())
    tensor = tensor[:more] if more < 0 else np.append(tensor, np.zeros(more, np.uint8))
    tensor[:12].view(np.int32)[:] = counts
    with pytest.raises(TensorError):
        packed_batch(cases.SCHEMA, tensor)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rt_visible", 4),
        ("candidate_visible", 5),
        ("context_candidates", 5),
        ("lifelong_offsets", 4),
        ("rt_offsets", 5),
        ("candidate_offsets", 7),
    ],
)
def test_a_row_sees_what_is_its_requests_own(name: str, value: int) -> None:
    """Numbers that an engine would follow into other memory are refused by their name."""
    with pytest.raises(TensorError, match=name):
        packed_batch(cases.SCHEMA, changed(name, value))


@pytest.mark.parametrize("tensor", [np.zeros(15, np.uint8), np.zeros(64, np.float32)])
def test_what_is_no_such_tensor_is_refused(tensor: NDArray[np.uint8]) -> None:
    """Too short, or of another type."""
    with pytest.raises(TensorError, match="expected a 1-D tensor of uint8"):
        packed_batch(cases.SCHEMA, tensor)
