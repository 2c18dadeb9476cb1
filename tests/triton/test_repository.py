"""The generated repository: Triton's own schema accepts it, and it says what the design says."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from engine_build.requests import random_request
from engine_build.runtime.manifest import Limits, Manifest, PackageError
from engine_build.runtime.package import open_package
from engine_build.runtime.tensors import TensorError, request_batch, request_tensors
from engine_build.triton.cli import repository as command
from engine_build.triton.model_config import (
    RepositoryError,
    ServingOptions,
    as_text,
    check_fits,
    model_config,
    offset_input,
)
from engine_build.triton.repository import add_model, launch_command, write_warm_up
from model_def.schema import FeatureSchema, IdFeature
from tests.model_def import cases
from tests.triton.packages import add


def tensorrt_config(package: Path, **options: Any) -> pb.ModelConfig:
    """What the package's engine would have were it TensorRT's, parsed back from its text."""
    opened = open_package(package)
    manifest = opened.manifests["onnx-cpu"].model_copy(update={"kind": "tensorrt"})
    config = model_config(
        opened.config, manifest, opened.golden, ServingOptions(**options), "tensorrt"
    )
    return text_format.Parse(as_text(config), pb.ModelConfig())


def test_every_input_is_one_ragged_dimension(package_dir: Path) -> None:
    """At most 16 inputs, each 1-D of any length and batched without padding."""
    config = tensorrt_config(package_dir)
    assert config.backend == "tensorrt"
    assert {t.name for t in config.input} == {s.name for s in request_tensors(cases.SCHEMA)}
    assert len(config.input) <= 16
    for tensor in config.input:
        assert list(tensor.dims) == [-1]
        assert tensor.allow_ragged_batch


def test_offsets_accumulate_an_input_of_their_rows(package_dir: Path) -> None:
    """Each offsets input counts elements, from zero, of an input with one element a row."""
    one_element = {s.name: s.rows for s in request_tensors(cases.SCHEMA) if s.width == 1}
    made = {b.target_name[0]: b for b in tensorrt_config(package_dir).batch_input}
    rows = {name: one_element[b.source_input[0]] for name, b in made.items()}
    assert rows == {
        "lifelong_offsets": "lifelong",
        "rt_offsets": "realtime",
        "candidate_offsets": "candidate",
    }
    for batch_input in made.values():
        assert batch_input.kind == pb.BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO
        assert batch_input.data_type == pb.TYPE_INT32


def test_a_segment_without_such_an_input_is_counted_in_elements() -> None:
    """Then the engine's input has a name that says so, and the engine divides."""
    item_id, _, price = cases.SCHEMA.behaviour
    behaviour = (item_id, IdFeature(name="shop"), price)
    schema = FeatureSchema(**cases.SCHEMA.model_dump() | {"behaviour": behaviour})
    counted = offset_input(schema, "lifelong_offsets")
    assert counted["target_name"] == ["lifelong_elements"]
    assert counted["source_input"] == ["lifelong_ids"]


def test_outputs_are_scattered_as_the_candidates_came(package_dir: Path) -> None:
    """Each task's scores return in the shape of the request's one-element-a-candidate input."""
    config = tensorrt_config(package_dir)
    assert {o.name for o in config.output} == {"ctr", "ctcvr"}
    for output in config.batch_output:
        assert output.kind == pb.BatchOutput.BATCH_SCATTER_WITH_INPUT_SHAPE
        assert list(output.source_input) == ["candidate_visible"]


def test_the_queue_is_bounded_in_length_and_time(package_dir: Path) -> None:
    """A full queue and a late request are rejected; a request may only shorten its time."""
    config = tensorrt_config(package_dir, queue_requests=7, queue_timeout_ms=50, batch_requests=4)
    policy = config.dynamic_batching.default_queue_policy
    assert config.max_batch_size == 4
    assert policy.max_queue_size == 7
    assert policy.default_timeout_microseconds == 50_000
    assert policy.allow_timeout_override
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT


def test_options_reach_the_configuration(package_dir: Path) -> None:
    """CUDA graphs, busy-waiting and instances are as asked."""
    config = tensorrt_config(package_dir, cuda_graphs=True, busy_wait=True, instances=3)
    assert config.optimization.cuda.graphs
    assert config.optimization.cuda.busy_wait_events
    assert config.instance_group[0].count == 3
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU


@given(requests=st.integers(1, 64), most=st.integers(1, 20_000), candidates=st.integers(1, 2000))
def test_batches_that_exceed_the_engine_are_refused(
    requests: int, most: int, candidates: int
) -> None:
    """Triton counts requests, so the largest batch of them must fit the largest profile."""
    limits = Limits(requests=64, lifelong=10**6, realtime=10**6, candidates=most)
    manifest = Manifest(
        kind="tensorrt", checkpoint_sha256="", precision="float16", tolerance=0.002,
        limits=limits, builders={}, files={},
    )  # fmt: skip
    options = ServingOptions(batch_requests=requests, max_candidates=candidates)
    if requests * candidates <= most:
        check_fits(cases.SCHEMA, manifest, options)
    else:
        with pytest.raises(RepositoryError, match="candidates"):
            check_fits(cases.SCHEMA, manifest, options)


def test_a_model_carries_its_package(package_dir: Path, repository: Path) -> None:
    """The model's folder is whole: it opens as the package that it was made from."""
    model = open_package(repository / "cases-v1-onnx-cpu" / "1")
    assert model.config == open_package(package_dir).config


def test_golden_requests_warm_a_tensorrt_engine_up(package_dir: Path, tmp_path: Path) -> None:
    """Every file that the configuration names is there, with the bytes of its shape."""
    config = tensorrt_config(package_dir)
    write_warm_up(tmp_path, open_package(package_dir))
    assert len(config.model_warmup) == len(open_package(package_dir).golden)
    for sample in config.model_warmup:
        for name, file in sample.inputs.items():
            (spec,) = (s for s in request_tensors(cases.SCHEMA) if s.name == name)
            size = (tmp_path / "warmup" / file.input_data_file).stat().st_size
            assert size == file.dims[0] * spec.dtype.itemsize


def test_a_model_is_added_once_and_whole(package_dir: Path, tmp_path: Path) -> None:
    """A second engine of one version is refused, and a damaged package leaves nothing behind."""
    add(tmp_path, package_dir)
    with pytest.raises(RepositoryError, match="needs a new version"):
        add(tmp_path, package_dir)
    damaged = tmp_path / "damaged"
    shutil.copytree(package_dir, damaged)
    (damaged / "onnx-cpu" / "model.onnx").write_bytes(b"")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PackageError, match=r"model\.onnx"):
        add(empty, damaged)
    assert not list(empty.iterdir())


def test_an_engine_that_the_package_lacks_is_named(package_dir: Path, tmp_path: Path) -> None:
    """The message says which engines there are and how to build the one asked for."""
    with pytest.raises(RepositoryError, match=r"no tensorrt engine, only \['onnx-cpu'\]"):
        add_model(tmp_path, package_dir, "tensorrt", ServingOptions())


def test_the_launch_command_loads_only_what_it_names(repository: Path) -> None:
    """Explicit control, so a new version is loaded when a gateway asks for it."""
    words = shlex.split(launch_command(repository, ["cases-v1-onnx-cpu"]))
    assert "--model-control-mode=explicit" in words
    assert "--load-model=cases-v1-onnx-cpu" in words
    with pytest.raises(RepositoryError, match="no such model"):
        launch_command(repository, ["absent"])


def test_tensorrt_is_not_launched_without_its_plugins(tmp_path: Path) -> None:
    """A missing library is named before a server is; an existing one is in the command."""
    model = tmp_path / "shop-v1-tensorrt"
    model.mkdir()
    (model / "config.pbtxt").touch()
    library = tmp_path / "libplugins.so"
    with pytest.raises(RepositoryError, match=r"libplugins\.so: not found"):
        launch_command(tmp_path, [model.name], plugin_library=library)
    library.touch()
    words = shlex.split(launch_command(tmp_path, [model.name], plugin_library=library))
    assert f"--backend-config=tensorrt,plugins={library}" in words


def test_the_command_adds_a_model_and_prints_how_to_serve_it(
    package_dir: Path, tmp_path: Path
) -> None:
    """Its faults are told in words, as is an option out of range."""
    made = CliRunner().invoke(command, [str(package_dir), str(tmp_path / "models")])
    assert made.exit_code == 0, made.output
    assert made.output.startswith("tritonserver ")
    assert (tmp_path / "models" / "cases-v1-onnx-cpu" / "config.pbtxt").is_file()
    again = CliRunner().invoke(command, [str(package_dir), str(tmp_path / "models")])
    assert again.exit_code == 1
    assert "exists" in again.output
    wrong = CliRunner().invoke(
        command, [str(package_dir), str(tmp_path / "m"), "--batch-requests", "0"]
    )
    assert "--batch-requests" in wrong.output


def tensors_of(seed: int) -> dict[str, Any]:
    request = random_request(cases.SCHEMA, np.random.default_rng(seed), 5, 4, 6)
    return {s.name: request.arrays[s.name] for s in request_tensors(cases.SCHEMA)}


@given(st.integers(0, 12), st.integers(0, 5), st.integers(1, 9))
def test_a_request_survives_the_crossing(lifelong: int, realtime: int, candidates: int) -> None:
    """From its tensors alone the batch comes back byte for byte."""
    rng = np.random.default_rng(lifelong)
    request = random_request(cases.SCHEMA, rng, lifelong, realtime, candidates)
    tensors = {s.name: request.arrays[s.name] for s in request_tensors(cases.SCHEMA)}
    assert request_batch(cases.SCHEMA, tensors).buffer.tobytes() == request.buffer.tobytes()


@pytest.mark.parametrize("name", [spec.name for spec in request_tensors(cases.SCHEMA)])
def test_a_tensor_that_contradicts_the_others_is_named(name: str) -> None:
    """Missing, of another type, or of another number of rows."""
    tensors = tensors_of(0)
    for bad in ({}, {name: tensors[name].astype(np.float64)}, {name: tensors[name][:-1]}):
        others = {n: tensor for n, tensor in tensors.items() if n != name}
        with pytest.raises(TensorError):
            request_batch(cases.SCHEMA, others | bad)


def test_keys_beyond_a_requests_own_are_refused() -> None:
    """What a row may see ends with the request: an engine would read another's memory."""
    for name, value in (("rt_visible", 4), ("candidate_visible", 5)):
        tensors = tensors_of(0)
        tensors[name] = np.full_like(tensors[name], value)
        with pytest.raises(TensorError, match=name):
            request_batch(cases.SCHEMA, tensors)
