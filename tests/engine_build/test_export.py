"""The exported graph: its inputs, its nodes, and its scores against PyTorch's."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import helper

from engine_build import export
from engine_build.export import export_onnx, save_onnx
from engine_build.onnx_functions import DOMAIN, OPERATORS, PLUGIN_ATTRIBUTES
from engine_build.requests import random_batch
from engine_build.runtime.onnx_cpu import MODEL
from engine_build.runtime.tensors import engine_inputs
from model_def.config import PRESETS
from model_def.model import to_tensors
from tests.model_def import cases


@pytest.fixture(scope="module")
def graph(package_dir: Path) -> onnx.GraphProto:
    return onnx.load(package_dir / "onnx-cpu" / MODEL).graph


def test_inputs_and_outputs(graph: onnx.GraphProto) -> None:
    """Inputs are the schema's arrays as it orders and types them, context_candidates left out;
    outputs are the tasks. All are 1-D of free length."""
    specs = engine_inputs(cases.SCHEMA)
    assert [value.name for value in graph.input] == [spec.name for spec in specs]
    for value, spec in zip(graph.input, specs, strict=True):
        kind = value.type.tensor_type
        assert helper.tensor_dtype_to_np_dtype(kind.elem_type) == spec.dtype
        assert [d.HasField("dim_value") for d in kind.shape.dim] == [False]
    assert [value.name for value in graph.output] == ["ctr", "ctcvr"]


def test_operators_are_nodes(graph: onnx.GraphProto) -> None:
    """Every layer is two norms and one attention node of our domain, with the attributes by which
    TensorRT finds their plugins; the projection goes into them whole."""
    nodes = [node for node in graph.node if node.domain == DOMAIN]
    kinds = [node.op_type for node in nodes]
    layers = PRESETS["tiny"].layers
    assert set(kinds) == {operator.name for operator in OPERATORS}
    assert [kinds.count(k) for k in ("group_layer_norm", "hstu_attention")] == [layers, layers]
    for node in nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for name, value in PLUGIN_ATTRIBUTES.items():
            assert attributes[name] == value.encode()
    shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.value_info}
    for node in nodes:
        if node.op_type == "hstu_attention":
            assert [shapes[name] for name in node.input[:2]] == [4, 4]
    first, last = (n for n in nodes if n.op_type == "hstu_attention")
    assert first.input[0] == first.input[1]
    assert last.input[0] != last.input[1]


def test_no_trace_of_the_builder(package_dir: Path) -> None:
    """The file carries no path of the machine that built it."""
    text = (package_dir / "onnx-cpu" / MODEL).read_bytes()
    assert str(Path(export.__file__).parent.parent).encode() not in text


def test_host_embeddings(tmp_path: Path) -> None:
    """With embeddings on the host the graph takes their rows, has no id lookup, and scores the
    same."""
    model = cases.model(PRESETS["tiny"].model_copy(update={"embedding_source": "host"}))
    path = tmp_path / MODEL
    save_onnx(export_onnx(model), path)
    assert "id_lookup" not in {node.op_type for node in onnx.load(path).graph.node}
    session = onnxruntime.InferenceSession(path)
    batch = random_batch(cases.SCHEMA, np.random.default_rng(1), [(3, 2, 4), (0, 0, 1)])
    tensors = model.embeddings(to_tensors(batch))
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    out = session.run(None, {value.name: arrays[value.name] for value in session.get_inputs()})
    expected = model(tensors).sigmoid().detach().numpy()
    np.testing.assert_allclose(np.stack(out, axis=1), expected, rtol=0, atol=1e-5)


def test_too_large_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table beyond an engine's limit is refused by name, with the fix."""
    monkeypatch.setattr(export, "MAX_TABLE_ELEMENTS", 400)
    with pytest.raises(ValueError, match=r"embeddings\.values.*embedding_source 'host'"):
        export_onnx(cases.model())


def test_weights_beside_a_full_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package_dir: Path
) -> None:
    """Weights that one file cannot hold go to a file beside it, and the graph still loads."""
    graph = onnx_ir.load(package_dir / "onnx-cpu" / MODEL)
    monkeypatch.setattr(export, "MAX_FILE_BYTES", 1000)
    save_onnx(graph, tmp_path / MODEL)
    assert (tmp_path / f"{MODEL}.data").stat().st_size > 1000
    onnxruntime.InferenceSession(tmp_path / MODEL)
