"""What a Triton server is asked: requests of one model, prebuilt but for their values.

A message that follows another on the wire is merged with it (protobuf's encoding guide, "Last One
Wins"), so the tensors' bytes are joined to it as they lie: protobuf would copy them twice more.
"""

from collections.abc import Iterator

from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import np_to_triton_dtype

from engine_build.runtime.packed import HEAD_BYTES, PACKED, packed_head
from engine_build.runtime.tensors import request_tensors
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.shared_memory import Shared

Buffer = bytes | memoryview

RAW_INPUT = bytes([pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
"""What introduces an element of `raw_input_contents`: its field, and that its length follows."""


class RequestForm:
    """For model `name`, an engine of `config`. `packed`: as one tensor, where the model takes that;
    a call then costs a quarter less."""

    def __init__(self, name: str, config: PackageConfig, *, packed: bool):
        inputs = [
            {"name": spec.name, "datatype": np_to_triton_dtype(spec.dtype)}
            for spec in request_tensors(config.features)
        ]
        self._template = pb.ModelInferRequest(
            model_name=name,
            inputs=[{"name": PACKED, "datatype": "UINT8"}] if packed else inputs,
            outputs=[{"name": task} for task in config.model.tasks],
        )

    def request(self, batch: PackedBatch, left_s: float, places: Shared) -> bytes:
        """The message of one request with `left_s` seconds left; the tensors that have places lie
        there."""
        request = pb.ModelInferRequest()
        request.CopyFrom(self._template)
        # After so many microseconds Triton drops it from the queue: nobody would read the answer.
        request.parameters["timeout"].int64_param = max(1, int(1e6 * left_s))
        contents: list[Buffer] = []
        for tensor in request.inputs:
            name = tensor.name
            place = places.get(name)
            if name == PACKED:
                values: list[Buffer] = [packed_head(batch), batch.buffer.data]
                count = size = HEAD_BYTES + batch.payload_bytes
            else:
                array = batch.arrays[name]
                values, count, size = [array.data], len(array), array.nbytes
            tensor.shape.extend((1, count))
            if place is None:
                contents += [RAW_INPUT, varint(size), *values]
                continue
            parameters = tensor.parameters
            parameters["shared_memory_region"].string_param = place.region
            parameters["shared_memory_offset"].int64_param = place.start
            parameters["shared_memory_byte_size"].int64_param = place.size
        return b"".join([request.SerializeToString(), *contents])


def varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    return bytes(_sevens(number))


def _sevens(number: int) -> Iterator[int]:
    while number > 127:
        yield number & 127 | 128
        number >>= 7
    yield number
