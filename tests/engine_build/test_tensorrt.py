"""What can be shown of the TensorRT engine without TensorRT: its network, and our every call."""

import ast
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from engine_build.build import BuildError, BuildOptions
from engine_build.onnx_functions import OPERATORS, PLUGIN_ATTRIBUTES
from engine_build.package import pytorch_scores
from engine_build.requests import random_batch
from engine_build.runtime.manifest import Limits
from engine_build.runtime.tensors import OFFSET_ROWS, engine_inputs, offset_input_name
from engine_build.tensorrt.network import (
    Shape,
    profile_shapes,
    strip_bodies,
    tensorrt_graph,
)
from model_def.checkpoint import Checkpoint
from model_def.config import PackageConfig
from model_def.model import MTGR
from model_def.schema import CategoryFeature, FeatureSchema, IdFeature
from tests.conftest import ROOT, SHARED
from tests.engine_build.tensorrt_api import PLAN, Api, double
from tests.model_def import cases

COUNTED = FeatureSchema.model_validate(
    {
        **cases.SCHEMA.model_dump(),
        "name": "counted",
        "behaviour": (
            *cases.SCHEMA.behaviour,
            CategoryFeature(name="day", size=7),
            IdFeature(name="with_item", table="item_id"),
        ),
    }
)
"""A schema whose lifelong segment has no array of one element a token."""

PARSED = {
    *("Abs", "Add", "Cast", "Clip", "Concat", "Constant", "Div", "Expand", "Gather", "Gemm"),
    *("GreaterOrEqual", "Less", "Log", "Mul", "Range", "ReduceSum", "Reshape", "Shape"),
    *("Sigmoid", "Sign", "Slice", "Split", "Squeeze", "Sub", "Unsqueeze", "Where"),
}
"""Of the parser's support matrix (onnx-tensorrt, docs/operators.md), what our graphs use."""


@pytest.fixture(scope="module")
def net() -> MTGR:
    model = cases.model()
    tables = cases.id_tables()
    return MTGR(model.config, COUNTED, tables).eval()


@pytest.fixture(scope="module")
def graphs(net: MTGR) -> Mapping[str, ir.Model]:
    return {precision: tensorrt_graph(net, precision) for precision in ("float16", "bfloat16")}


@pytest.fixture
def graph(graphs: Mapping[str, ir.Model]) -> ir.Model:
    return graphs["float16"]


@pytest.fixture(scope="module", params=["10.16", "11.4"])
def api(request: pytest.FixtureRequest) -> Api:
    file = SHARED / "tensorrt_api" / f"{request.param}.json"
    if not file.is_file():
        pytest.skip(f"NOT CHECKED: no TensorRT API listing at {file} (set MTGR_SHARED)")
    return Api(file)


def test_scores_in_16_bits(net: MTGR, graph: ir.Model, tmp_path: Path) -> None:
    """The graph that TensorRT will parse, its bodies still in it, scores in ONNX Runtime as PyTorch
    does in float32, up to 16-bit rounding; and takes element counts where a server makes them."""
    ir.save(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = [value.name for value in session.get_inputs()]
    assert "lifelong_elements" in names
    assert "lifelong_offsets" not in names
    for sizes in ([(7, 3, 5)], [(7, 3, 5), (0, 0, 1), (12, 5, 9)]):
        batch = random_batch(COUNTED, np.random.default_rng(0), sizes)
        counts = batch.arrays["lifelong_offsets"] * 2  # two ids a token
        arrays = {**batch.arrays, "lifelong_elements": counts}
        out = session.run(["ctr", "ctcvr"], {name: arrays[name] for name in names})
        for scores, expected in zip(out, pytorch_scores(net, batch).values(), strict=True):
            np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_parser_takes_every_node(
    net: MTGR, graphs: Mapping[str, ir.Model], precision: str, tmp_path: Path
) -> None:
    """Every node is one that the parser knows, or a plugin's; no body is left; weights are of 16
    bits but the heads'; uint8 goes no further than its cast to float; nothing is float64."""
    stripped = strip_bodies(graphs[precision])
    file = tmp_path / "model.onnx"
    ir.save(stripped, file)
    model = onnx.shape_inference.infer_shapes(onnx.load(file))
    assert not model.functions
    standard = {node.op_type for node in model.graph.node if not node.domain}
    assert standard <= PARSED
    uint8 = {v.name for v in model.graph.input if elem_type(v) == TensorProto.UINT8}
    assert uint8
    for node in model.graph.node:
        if uint8 & set(node.input):
            assert node.op_type == "Cast"
            assert node.attribute[0].i == TensorProto.FLOAT
    inner = [*model.graph.value_info, *model.graph.output]
    assert not {TensorProto.UINT8, TensorProto.DOUBLE} & {elem_type(v) for v in inner}
    short = getattr(TensorProto, precision.upper())
    weights = {t.name: t.data_type for t in model.graph.initializer}
    for name, parameter in net.named_parameters():
        if name.startswith("heads.") and parameter.ndim == 2:
            assert weights[f"model.{name}"] == TensorProto.FLOAT
        elif f"model.{name}" in weights and not name.startswith("heads."):
            assert weights[f"model.{name}"] == short
    assert {elem_type(v) for v in model.graph.output} == {TensorProto.FLOAT}


def elem_type(value: onnx.ValueInfoProto) -> int:
    return value.type.tensor_type.elem_type


def test_profiles_cover_the_limits() -> None:
    """A profile has a range for every input, from one empty request to the largest batch."""
    shapes = profile_shapes(COUNTED, Limits(requests=4, lifelong=40, realtime=20, candidates=80))
    names = [value.name for value in engine_inputs(COUNTED)]
    names = [offset_input_name(COUNTED, n) if n in OFFSET_ROWS else n for n in names]
    assert list(shapes) == names
    assert shapes["lifelong_categories"] == Shape(0, 80, 80)
    assert shapes["candidate_visible"] == Shape(1, 80, 80)
    assert shapes["lifelong_elements"] == Shape(2, 5, 5)
    assert shapes["profile_ids"].smallest > 0


def operator_fields() -> dict[str, set[str]]:
    return {
        operator.name: set(operator.function_ir.attributes) - set(PLUGIN_ATTRIBUTES)
        for operator in OPERATORS
    }


@pytest.fixture
def library(tmp_path: Path) -> Path:
    file = tmp_path / "libplugins.so"
    file.write_bytes(b"plugins")
    return file


def builder_with(
    monkeypatch: pytest.MonkeyPatch, api: Api, fields: dict[str, set[str]], graph: ir.Model
) -> ModuleType:
    """The builder module, importing a `tensorrt` as strict as the listing; the graph is made."""
    monkeypatch.setitem(sys.modules, "tensorrt", double(api, fields))
    cuda = ModuleType("engine_build.runtime.cuda")
    cuda.Buffer = cuda.check = None
    cuda.device_name = lambda: "a GPU"
    monkeypatch.setitem(sys.modules, "engine_build.runtime.cuda", cuda)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = None
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    for name in ("engine_build.runtime.tensorrt", "engine_build.tensorrt.builder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    builder = importlib.import_module("engine_build.tensorrt.builder")
    for name in ("engine_build.runtime.tensorrt", "engine_build.tensorrt.builder"):
        monkeypatch.delitem(sys.modules, name)  # those made with the double go with the test
    monkeypatch.setattr(builder, "tensorrt_graph", lambda model, precision: graph)
    return builder


def counted_checkpoint(net: MTGR) -> Checkpoint:
    config = PackageConfig(version="v1", model=net.config, features=COUNTED)
    return Checkpoint(config, net, cases.id_tables(), {})


def test_build_calls_what_exists(
    api: Api,
    net: MTGR,
    graph: ir.Model,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From version check to plan, every call that the builder makes is one that both versions of
    TensorRT have, with the arguments that they take."""
    builder = builder_with(monkeypatch, api, operator_fields(), graph)
    cache = tmp_path / "timings"
    options = BuildOptions(
        precision="float16", batch_requests=4, plugin_library=library, timing_cache=cache
    )
    directory = tmp_path / "tensorrt"
    directory.mkdir()
    built = builder.build(counted_checkpoint(net), directory, options)
    assert (directory / "model.plan").read_bytes() == PLAN
    assert (directory / "libmtgr_tensorrt.so").read_bytes() == b"plugins"
    assert cache.read_bytes() == b"timings"
    assert built.limits == options.limits(COUNTED, 4)
    assert built.builders["tensorrt"] == f"{api.version}.0"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "id_lookup: the plugin library registers no such plugin"),
        ({**operator_fields(), "id_lookup": {"probes"}}, r"fields are \['probes'\]"),
    ],
)
def test_plugins_of_other_source(
    api: Api,
    net: MTGR,
    graph: ir.Model,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, set[str]],
    message: str,
) -> None:
    """A plugin library that lacks a plugin, or whose fields are not the model's, is refused before
    anything is built."""
    builder = builder_with(monkeypatch, api, fields, graph)
    options = BuildOptions(precision="float16", plugin_library=library)
    with pytest.raises(BuildError, match=message):
        builder.build(counted_checkpoint(net), tmp_path, options)


def test_no_plugin_library(
    api: Api, net: MTGR, graph: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a plugin library the build says where to get one."""
    builder = builder_with(monkeypatch, api, operator_fields(), graph)
    with pytest.raises(BuildError, match=r"plugin library None: not found.*--plugin-library"):
        builder.build(counted_checkpoint(net), tmp_path, BuildOptions())


OWNERS = {
    "builder": "Builder",
    "registry": "IPluginRegistry",
    "self._runtime.get_plugin_registry()": "IPluginRegistry",
    "network": "INetworkDefinition",
    "network.get_input(number)": "ITensor",
    "parser": "OnnxParser",
    "e": "ParserError",
    "config": "IBuilderConfig",
    "config.get_timing_cache()": "ITimingCache",
    "profile": "IOptimizationProfile",
    "creator": "IPluginCreatorV3One",
    "field": "PluginField",
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""What TensorRT's objects are called in our two modules."""

TENSORRT_MODULES = {
    "engine_build/tensorrt/builder.py": {},
    "engine_build/runtime/tensorrt.py": {"config": ""},  # there it is the package's
}


def test_names_exist(api: Api) -> None:
    """Every TensorRT name and keyword in the builder and the runtime exists in both versions."""
    used: set[str] = set()
    for module, others in TENSORRT_MODULES.items():
        owners = {**OWNERS, **others}
        for node in ast.walk(ast.parse((ROOT / module).read_text())):
            call = node if isinstance(node, ast.Call) else None
            named = call.func if call else node
            if not isinstance(named, ast.Attribute):
                continue
            owner = ast.unparse(named.value)
            if owner == "trt":
                assert named.attr == "__version__" or named.attr in api.names, named.attr
                continue
            name = owner.removeprefix("trt.") if "trt." in owner else owners.get(owner)
            if name not in api.names:
                continue
            assert named.attr in api.members(name), f"{name}.{named.attr}"
            used.add(name)
            if call and call.keywords:
                assert {k.arg for k in call.keywords} <= api.keywords(name, named.attr)
    assert used >= set(OWNERS.values())
