"""What is sent is what protobuf would have made of the request."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from engine_build.requests import random_request
from engine_build.runtime.packed import PACKED, packed_tensor
from engine_build.runtime.tensors import request_tensors
from model_def.config import PRESETS, PackageConfig
from service.backends.shared_memory import Place
from service.backends.triton_grpc import GrpcForm, varint
from tests.model_def.cases import SCHEMA

CONFIG = PackageConfig(version="v", model=PRESETS["tiny"], features=SCHEMA)
sizes = st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(1, 2000))


@settings(deadline=None)
@pytest.mark.parametrize("packed", [True, False])
@given(size=sizes, left_s=st.floats(0, 10))
def test_the_bytes_are_the_message(packed: bool, size: tuple[int, int, int], left_s: float) -> None:
    """A server reads every tensor whole, in the order of its inputs, each with its shape."""
    batch = random_request(SCHEMA, np.random.default_rng(0), *size)
    sent = GrpcForm("model", CONFIG, packed).request(batch, left_s, {})
    read = pb.ModelInferRequest.FromString(sent)
    whole = {PACKED: packed_tensor(batch)}
    expected = whole if packed else {s.name: batch.arrays[s.name] for s in request_tensors(SCHEMA)}
    assert [tensor.name for tensor in read.inputs] == [*expected]
    assert [[*tensor.shape] for tensor in read.inputs] == [[1, len(e)] for e in expected.values()]
    assert [*read.raw_input_contents] == [array.tobytes() for array in expected.values()]
    assert read.model_name == "model"
    assert [output.name for output in read.outputs] == [*CONFIG.model.tasks]
    assert read.parameters["timeout"].int64_param == max(1, int(1e6 * left_s))


def test_what_lies_in_shared_memory_is_not_sent() -> None:
    """Of a tensor with a place the message tells where it is."""
    batch = random_request(SCHEMA, np.random.default_rng(0), 3, 2, 4)
    form = GrpcForm("model", CONFIG, packed=True)
    read = pb.ModelInferRequest.FromString(form.request(batch, 1.0, {PACKED: Place("r", 64, 512)}))
    (tensor,) = read.inputs
    assert not read.raw_input_contents
    assert tensor.parameters["shared_memory_region"].string_param == "r"
    assert tensor.parameters["shared_memory_offset"].int64_param == 64
    assert tensor.parameters["shared_memory_byte_size"].int64_param == 512


@given(st.integers(0, 2**40))
def test_lengths_are_protobufs(number: int) -> None:
    """As protobuf writes the same number into a field."""
    message = pb.InferParameter(uint64_param=number).SerializeToString()
    assert message[1:] == varint(number)
