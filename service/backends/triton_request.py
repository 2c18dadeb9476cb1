"""What a Triton server is asked: requests of one model, prebuilt but for their values."""

from typing import Any

from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import np_to_triton_dtype

from engine_build.runtime.packed import PACKED, packed_tensor
from engine_build.runtime.tensors import request_tensors
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.shared_memory import Shared


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

    def request(self, batch: PackedBatch, left_s: float, places: Shared) -> Any:
        """Of one request with `left_s` seconds left; the tensors that have places lie there."""
        request = pb.ModelInferRequest()
        request.CopyFrom(self._template)
        # After so many microseconds Triton drops it from the queue: nobody would read the answer.
        request.parameters["timeout"].int64_param = max(1, int(1e6 * left_s))
        for tensor in request.inputs:
            name = tensor.name
            values = packed_tensor(batch) if name == PACKED else batch.arrays[name]
            tensor.shape.extend((1, len(values)))
            place = places.get(name)
            if place is None:
                request.raw_input_contents.append(values.tobytes())
                continue
            parameters = tensor.parameters
            parameters["shared_memory_region"].string_param = place.region
            parameters["shared_memory_offset"].int64_param = place.start
            parameters["shared_memory_byte_size"].int64_param = place.size
        return request
