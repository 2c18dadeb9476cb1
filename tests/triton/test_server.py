"""What a real Triton server does with the generated repositories."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import np_to_triton_dtype

from engine_build.requests import random_request
from engine_build.runtime.golden import Golden
from engine_build.runtime.package import open_package
from engine_build.runtime.packed import PACKED, packed_tensor
from engine_build.runtime.tensors import request_tensors
from engine_build.triton.model_config import ServingOptions, as_text, model_config
from engine_build.triton.repository import write_warm_up
from tests.model_def import cases
from tests.triton.packages import add, retrained
from tests.triton.server import TritonServer

PATIENT_S = 30.0


def message(model: str, tensors: dict[str, Any]) -> service_pb2.ModelInferRequest:
    """A request with these 1-D tensors."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, values in tensors.items():
        datatype = np_to_triton_dtype(values.dtype)
        request.inputs.add(name=name, datatype=datatype, shape=[1, len(values)])
        request.raw_input_contents.append(values.tobytes())
    return request


def tensors_of(golden: Golden) -> dict[str, Any]:
    return {s.name: golden.request.arrays[s.name] for s in request_tensors(cases.SCHEMA)}


async def together(
    address: str, model: str, requests: Sequence[service_pb2.ModelInferRequest]
) -> list[Any]:
    """The outcomes of requests that are sent at once, after the model was loaded."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        await stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name=model))
        return await asyncio.gather(
            *(stub.ModelInfer(request) for request in requests), return_exceptions=True
        )


def batch_sizes(address: str, model: str, requests: int) -> set[int]:
    """How many requests the model's runs had, once the runs of so many are counted.

    Triton counts a run after it has sent the answers.
    """
    end = monotonic() + PATIENT_S
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        while monotonic() < end:
            answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=model))
            runs = {
                run.batch_size: run.compute_infer.count for run in answer.model_stats[0].batch_stats
            }
            if sum(size * count for size, count in runs.items()) >= requests:
                return set(runs)
    raise AssertionError(f"of {requests} requests, only the runs of these are counted: {runs}")


def check(answer: Any, golden: Golden) -> None:
    """The answer is the golden request's, in the shape of its one-element-a-candidate input."""
    for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True):
        expected = golden.scores[output.name]
        assert list(output.shape) == [1, len(expected)]
        np.testing.assert_allclose(np.frombuffer(content, np.float32), expected, atol=1e-4)


def test_the_tensorrt_configuration_batches_ragged_requests(
    package_dir: Path, triton: TritonServer, repository: Path, tmp_path: Path
) -> None:
    """Triton accepts what is generated for TensorRT, its ragged inputs, batch inputs and scattered
    outputs included (here over the Python backend, whose instances are on the CPU): concurrent
    requests of different lengths share runs, and each gets its own scores."""
    package = retrained(package_dir, tmp_path / "ragged", "ragged")
    name = add(repository, package)
    opened = open_package(package)
    manifest = opened.manifests["onnx-cpu"].model_copy(update={"kind": "tensorrt"})
    options = ServingOptions(batch_requests=4, batch_delay_us=200_000, queue_timeout_ms=60_000)
    config = model_config(opened.config, manifest, opened.golden, options, "tensorrt")
    assert len(config.batch_input) == 3
    assert len(config.batch_output) == 2
    config.name, config.backend = name, "python"
    config.parameters["engine"].string_value = "onnx-cpu"
    config.instance_group[0].kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
    (repository / name / "config.pbtxt").write_text(as_text(config))
    write_warm_up(repository / name, opened)

    requests = [golden for _ in range(4) for golden in opened.golden]
    messages = [message(name, tensors_of(golden)) for golden in requests]
    answers = asyncio.run(together(triton.address, name, messages))
    for answer, golden in zip(answers, requests, strict=True):
        check(answer, golden)
    assert 4 in batch_sizes(triton.address, name, len(messages))


def test_one_bad_request_fails_alone(
    package_dir: Path, triton: TritonServer, repository: Path, tmp_path: Path
) -> None:
    """Of requests that share a run, a malformed one is told what is wrong, and the others are
    scored."""
    package = retrained(package_dir, tmp_path / "careful", "careful")
    name = add(repository, package, batch_delay_us=200_000, max_candidates=100)
    golden = open_package(package).golden
    good = [message(name, tensors_of(item)) for item in golden[:3]]
    short = tensors_of(golden[0])
    short["candidate_ids"] = short["candidate_ids"][:-1]
    many = tensors_of(golden[0])
    for spec in request_tensors(cases.SCHEMA):
        if spec.rows == "candidate":
            many[spec.name] = np.tile(many[spec.name], 2)
    cut = {PACKED: packed_tensor(golden[0].request)[:-1]}
    bad = [message(name, short), message(name, many), message(name, cut)]
    outcomes = asyncio.run(together(triton.address, name, good + bad))
    for answer, item in zip(outcomes, golden[:3], strict=False):
        check(answer, item)
    details = [error.details() for error in outcomes[3:]]
    assert "100 elements; expected 1 for each of 99 candidate rows" in details[0]
    assert "200 candidates; this model's most is 100" in details[1]
    assert "packed: " in details[2]


def test_requests_are_run_as_they_came(
    package_dir: Path, triton: TritonServer, repository: Path, tmp_path: Path
) -> None:
    """Where the engine takes them so (it answers 1 - p here), requests of one tensor are, and each
    gets its own scores; what it may not, or refuses, is told what is wrong, and its batch mates are
    scored the other way."""
    package = retrained(package_dir, tmp_path / "packed", "packed")
    name = add(repository, package, batch_delay_us=200_000, max_candidates=100)
    (repository / name / "1" / "model.py").write_text(
        "from tests.triton.packed_model import TritonPythonModel\n"
    )
    golden = open_package(package).golden
    fits = [item for item in golden if item.request.candidates <= 100][:3]
    whole = [message(name, {PACKED: packed_tensor(item.request)}) for item in fits]
    answers = asyncio.run(together(triton.address, name, whole))
    for answer, item in zip(answers, fits, strict=True):
        turned = {task: 1 - values for task, values in item.scores.items()}
        check(answer, dataclasses.replace(item, scores=turned))
    assert len(fits) in batch_sizes(triton.address, name, len(whole))

    many = random_request(cases.SCHEMA, np.random.default_rng(0), 3, 2, 101)
    cut, short = packed_tensor(golden[0].request)[:-1], np.zeros(3, np.uint8)
    for bad, problem in (
        (packed_tensor(many), "101 candidates; this model's most is 100"),
        (cut, "packed: "),
        (short, "packed: expected a 1-D tensor of uint8"),
    ):
        mixed = [whole[0], message(name, {PACKED: bad})]
        answer, error = asyncio.run(together(triton.address, name, mixed))
        assert problem in error.details()
        check(answer, fits[0])


def test_triton_reads_what_it_was_given(triton: TritonServer, repository: Path) -> None:
    """The server's own view of a model's configuration agrees with every field we wrote."""
    name = "cases-v1-onnx-cpu"
    written = text_format.Parse(
        (repository / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
    )
    with grpc.insecure_channel(triton.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name=name))
        held = stub.ModelConfig(service_pb2.ModelConfigRequest(name=name)).config
    for field, value in written.ListFields():
        if field.name not in ("instance_group", "dynamic_batching"):  # Triton adds to these
            assert getattr(held, field.name) == value, field.name
    ours, theirs = written.dynamic_batching, held.dynamic_batching
    assert theirs.default_queue_policy == ours.default_queue_policy
    assert [group.count for group in held.instance_group] == [1]


@pytest.mark.parametrize("damage", ["engine", "model.py", "config.pbtxt"])
def test_a_broken_model_leaves_the_others_serving(
    package_dir: Path, triton: TritonServer, repository: Path, tmp_path: Path, damage: str
) -> None:
    """Its load fails with the cause; the server and its other models go on."""
    package = retrained(package_dir, tmp_path / damage, f"broken-{damage}")
    name = add(repository, package)
    file = {
        "engine": repository / name / "1" / "onnx-cpu" / "model.onnx",
        "model.py": repository / name / "1" / "model.py",
        "config.pbtxt": repository / name / "config.pbtxt",
    }[damage]
    file.write_text("def")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        asyncio.run(together(triton.address, name, []))
    cause = {"engine": "model.onnx: sha256", "model.py": "SyntaxError", "config.pbtxt": "poll"}
    assert cause[damage] in (failed.value.details() or "")
    healthy = "cases-v1-onnx-cpu"
    golden = open_package(package_dir).golden[1]
    (answer,) = asyncio.run(
        together(triton.address, healthy, [message(healthy, tensors_of(golden))])
    )
    check(answer, golden)
