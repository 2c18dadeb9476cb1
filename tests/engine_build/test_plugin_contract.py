"""The nodes that we export against the plugins' source: names, inputs in order, attributes."""

import re

import pytest
from onnxscript import OnnxFunction

from engine_build.onnx_functions import OPERATORS, PLUGIN_ATTRIBUTES
from tests.conftest import ROOT

SOURCES = ROOT / "plugins" / "tensorrt"
FIELD_TYPES = {"kFLOAT32": "FLOAT", "kINT32": "INT"}


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_fields_and_inputs(operator: OnnxFunction) -> None:
    """A plugin of the operator's name takes the node's attributes, by name and type, and says that
    it takes the node's inputs in the node's order."""
    source = (SOURCES / "ops.cpp").read_text()
    described = re.sub(r"\n// ", " ", source)
    (inputs,) = re.findall(rf"\b(?<!gated_){operator.name}\(([\w, ]+)\)", described)
    assert inputs.split(", ") == list(operator.to_function_proto().input)
    (body,) = (
        part for part in source.split(" final : public Op")[1:] if f'"{operator.name}"' in part
    )
    fields = dict(re.findall(r'\{"(\w+)", PluginFieldType::(\w+), \{\}\}', body))
    attributes = {
        name: attribute.type.name
        for name, attribute in operator.function_ir.attributes.items()
        if name not in PLUGIN_ATTRIBUTES
    }
    assert {name: FIELD_TYPES[kind] for name, kind in fields.items()} == attributes


def test_version_and_namespace() -> None:
    """Plugins register under the version and namespace that every node asks for."""
    header = (SOURCES / "plugin.h").read_text()
    named = dict(re.findall(r'constexpr char (\w+)\[\] = "(\w+)"', header))
    assert named == {
        "kVersion": PLUGIN_ATTRIBUTES["plugin_version"],
        "kNamespace": PLUGIN_ATTRIBUTES["plugin_namespace"],
    }
