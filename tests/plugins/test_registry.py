"""The TensorRT plugin library in the genuine plugin registry, which works without a GPU.

`MTGR_TENSORRT_LIBRARIES` lists pairs `python=library`, separated by colons: an interpreter that has
TensorRT's lean runtime (`tensorrt_lean_bindings`), and the library built against that version.
"""

import json
import os
import subprocess

import pytest

PAIRS = [pair for pair in os.environ.get("MTGR_TENSORRT_LIBRARIES", "").split(":") if pair]

LIST_CREATORS = """
import json, sys
import tensorrt_lean_bindings as trt
registry = trt.get_plugin_registry()
assert registry.load_library(sys.argv[1]) is not None, "library refused"
faces = {}
for name in sys.argv[2:]:
    creator = registry.get_creator(name, "1", "mtgr")
    assert creator is not None, name
    faces[name] = [creator.name, creator.plugin_version, creator.plugin_namespace,
                   {field.name: str(field.type).split(".")[-1] for field in creator.field_names}]
print(json.dumps([trt.__version__, faces]))
"""

FIELDS = {
    "hstu_attention": {"alpha": "FLOAT32", "inv_n": "FLOAT32", "first_query_segment": "INT32"},
    "group_layer_norm": {"eps": "FLOAT32"},
    "gated_group_layer_norm": {"eps": "FLOAT32"},
    "id_lookup": {"max_probe": "INT32"},
}


@pytest.mark.parametrize("pair", PAIRS or ["none"])
def test_the_registry_finds_every_plugin_as_the_onnx_file_names_it(pair: str) -> None:
    """Name, version, namespace and fields of each plugin are those of the nodes of domain mtgr."""
    if not PAIRS:
        pytest.skip("NOT CHECKED: no TensorRT registry (set MTGR_TENSORRT_LIBRARIES)")
    python, library = pair.split("=")
    command = [python, "-c", LIST_CREATORS, library, *FIELDS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    _, faces = json.loads(result.stdout.splitlines()[-1])
    assert faces == {name: [name, "1", "mtgr", fields] for name, fields in FIELDS.items()}
