"""Staging in one call of C does what `packed_batch`, `merge` and `stage` do, and trusts no more."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine_build.requests import random_request
from engine_build.runtime.buckets import Size, fitting, layout, size_of, stage
from engine_build.runtime.packed import packed_batch, packed_tensor
from engine_build.runtime.staging import Staging
from engine_build.runtime.tensors import TensorError, engine_inputs
from model_def.batch import merge
from model_def.data.simulator import SCHEMA as SIMULATED
from model_def.schema import FeatureSchema
from plugins import loader
from tests.model_def import cases

PLUGINS = Path(loader.__file__).parent
Bytes = NDArray[np.uint8]
SCHEMAS = {"visible in bytes": cases.SCHEMA, "simulated": SIMULATED}


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """`mtgr_stage`, built from its one source file, which needs no CUDA."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("NOT CHECKED: no C++ compiler")
    library = tmp_path_factory.mktemp("staging") / "staging.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    source = [f"-I{PLUGINS / 'include'}", str(PLUGINS / "staging" / "staging.cpp")]
    subprocess.run([compiler, *flags, *source, "-o", str(library)], check=True)
    built: Callable[..., int] = loader.stage_function(ctypes.CDLL(str(library)))
    return built


def tensor(schema: FeatureSchema, sizes: tuple[int, int, int], seed: int = 0) -> Bytes:
    return packed_tensor(random_request(schema, np.random.default_rng(seed), *sizes))


def staged_by_numpy(
    schema: FeatureSchema, bucket: Size, requests: list[Bytes], host: Bytes
) -> None:
    places, _ = layout(schema, bucket)
    batch = merge([packed_batch(schema, request) for request in requests], schema)
    stage(batch, {s.name: host[places[s.name]].view(s.dtype) for s in engine_inputs(schema)})


sizes_of_requests = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=4
)
more_rows = st.tuples(*[st.integers(0, 7)] * 4)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@given(sizes=sizes_of_requests, more=more_rows)
def test_a_batch_is_staged_as_by_numpy(
    function: Callable[..., int],
    schema: FeatureSchema,
    sizes: list[tuple[int, int, int]],
    more: tuple[int, int, int, int],
) -> None:
    """Every byte of the bucket, those that it had before too, whatever room it has beyond."""
    requests = [tensor(schema, of, seed) for seed, of in enumerate(sizes)]
    size = size_of(merge([packed_batch(schema, request) for request in requests], schema))
    bucket = Size(*(rows + beyond for rows, beyond in zip(size, more, strict=True)))
    before = np.random.default_rng(1).integers(0, 256, layout(schema, bucket)[1]).astype(np.uint8)
    expected, host = before.copy(), before.copy()
    staged_by_numpy(schema, bucket, requests, expected)
    assert Staging(function, schema, bucket, host)(requests)
    np.testing.assert_array_equal(host, expected)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_whatever_numpy_refuses_is_refused(
    function: Callable[..., int], data: st.DataObject
) -> None:
    """A request with any bytes changed, cut or added is refused or staged by both."""
    request = tensor(cases.SCHEMA, (5, 4, 6))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(request) - 1))
        request[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 16, len(request) - 15]))
    request = request[: len(request) - cut]
    request = np.append(request, np.zeros(data.draw(st.sampled_from([0, 0, 16])), np.uint8))
    bucket = Size(2, 10, 8, 12)
    host, expected = (np.zeros(layout(cases.SCHEMA, bucket)[1], np.uint8) for _ in range(2))
    staged = Staging(function, cases.SCHEMA, bucket, host)([request])
    try:
        fits = fitting([bucket], size_of(packed_batch(cases.SCHEMA, request)))
    except TensorError:
        assert not staged
        return
    assert staged == (fits is not None)
    if staged:
        staged_by_numpy(cases.SCHEMA, bucket, [request], expected)
        np.testing.assert_array_equal(host, expected)


@pytest.mark.parametrize("bucket", [Size(1, 24, 10, 18), Size(2, 10, 9, 12), Size(2, 11, 8, 11)])
def test_nothing_is_written_beyond_a_bucket(function: Callable[..., int], bucket: Size) -> None:
    """Two requests that it cannot hold are refused, one segment or another being too short."""
    requests = [tensor(cases.SCHEMA, of) for of in ((5, 4, 6), (6, 4, 6))]
    room = np.zeros(layout(cases.SCHEMA, bucket)[1] + 64, np.uint8)
    host = room[:-64]
    assert not Staging(function, cases.SCHEMA, bucket, host)(requests)
    assert not room[-64:].any()
