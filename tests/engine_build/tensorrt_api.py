"""TensorRT's Python API as its bindings list it: what exists, and a double that is that strict.

The double refuses every name, argument and keyword that the listed version does not have. It
builds nothing: its plan is a constant, so what it shows is that our calls are ones that TensorRT
has, in an order that ends.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

PLAN = b"a plan"


class Api:
    """One version's listing."""

    def __init__(self, file: Path):
        self.version = file.stem
        self.names: Mapping[str, Any] = json.loads(file.read_text())

    def members(self, name: str) -> dict[str, Any]:
        """Members of a class, its bases' included."""
        entry = self.names[name]
        inherited: dict[str, Any] = {}
        for base in entry["bases"]:
            if base in self.names:
                inherited |= self.members(base)
        return inherited | entry["members"]

    def keywords(self, owner: str, method: str) -> set[str]:
        """Names of the parameters of every overload of a method."""
        return {name for s in self.members(owner)[method] for name in parameters(s)}


def parameters(signature: str) -> dict[str, bool]:
    """Parameter names of a listed signature, self left out, and whether each is required."""
    inside = re.sub(r"\[[^\[\]]*\]", "", signature.split(") ->")[0].split("(", 1)[1])
    found = re.findall(r"(\w+): [^,=]+(= ?[^,]+)?", inside)
    return {name: not default for name, default in found if name != "self"}


def double(api: Api, fields: Mapping[str, set[str]]) -> ModuleType:
    """A `tensorrt` module of that version whose plugin registry has creators with these fields."""
    module = ModuleType("tensorrt")
    module.__version__ = f"{api.version}.0"
    for name, entry in api.names.items():
        if isinstance(entry, dict):
            setattr(module, name, _class(api, name, module))

    def get_creator(self: Any, type: str, version: str, plugin_namespace: str = "") -> Any:
        if (version, plugin_namespace) != ("1", "mtgr") or type not in fields:
            return None
        creator = module.IPluginCreatorV3One()
        creator.field_names = [module.PluginField(name) for name in sorted(fields[type])]
        return creator

    def parse_from_file(self: Any, model: str) -> bool:
        graph = onnx.load(model)
        assert not graph.functions
        self.network.inputs = [value.name for value in graph.graph.input]
        return True

    def get_input(self: Any, index: int) -> Any:
        tensor = module.ITensor()
        tensor.name = self.inputs[index]
        return tensor

    module.IPluginRegistry.get_creator = get_creator
    module.OnnxParser.parse_from_file = parse_from_file
    module.INetworkDefinition.get_input = get_input
    module.INetworkDefinition.num_inputs = property(lambda self: len(self.inputs))
    module.Builder.build_serialized_network = lambda self, network, config: PLAN
    module.ITimingCache.serialize = lambda self: b"timings"
    return module


def _class(api: Api, name: str, module: ModuleType) -> type:
    members = api.members(name)
    body: dict[str, Any] = {"__slots__": ("__dict__",)}
    for number, (member, listed) in enumerate(members.items()):
        if listed == "value":
            body[member] = number
        elif listed == "method" and not member.startswith("_"):
            body[member] = object()  # without a listed signature: a nested class
        elif isinstance(listed, list) and member != "__init__":
            body[member] = _method(name, member, listed, module)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        listed = members.get("__init__")
        if isinstance(listed, list):
            bound = _bind(name, listed, args, kwargs)
            vars(self).update({k: v for k, v in bound.items() if k in ("network", "name")})

    def refuse(self: Any, member: str, value: Any) -> None:
        if member.startswith("_") or members.get(member) == "property" or member == "inputs":
            vars(self)[member] = value
        else:
            raise AttributeError(f"{api.version}: {name} has no property {member}")

    return type(name, (), {**body, "__init__": init, "__setattr__": refuse})


def _method(
    owner: str, method: str, signatures: list[str], module: ModuleType
) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        _bind(f"{owner}.{method}", signatures, args, kwargs)
        returned = signatures[0].split(") -> ")[-1]
        if returned.startswith("tensorrt."):
            return getattr(module, returned.removeprefix("tensorrt."))()
        return {"bool": True, "int": 0, "str": "", "None": None}.get(returned, object())

    return call


def _bind(
    what: str, signatures: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    for signature in signatures:
        wanted = parameters(signature)
        bound = dict(zip(wanted, args, strict=False)) | dict(kwargs)
        fits = len(args) <= len(wanted) and set(kwargs) <= set(wanted)
        if fits and all(name in bound for name, required in wanted.items() if required):
            return bound
    raise TypeError(f"{what}{args}{dict(kwargs)}: fits none of {signatures}")
