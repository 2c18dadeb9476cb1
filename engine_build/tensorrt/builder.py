"""Builds engine kind `tensorrt`: a strongly typed plan for this machine's GPU, on TensorRT >= 10.8.

Our operators come from the plugin library, a copy of which becomes part of the engine: a plan and
its plugins belong together.
"""

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import tensorrt as trt

from engine_build.build import TOLERANCE, BuildError, BuildOptions, Built
from engine_build.export import save_onnx
from engine_build.onnx_functions import PLUGIN_ATTRIBUTES
from engine_build.runtime.cuda import device_name
from engine_build.runtime.tensorrt import PLAN, PLUGINS, Log
from engine_build.tensorrt.network import (
    plugin_nodes,
    profile_shapes,
    strip_bodies,
    tensorrt_graph,
)
from model_def.checkpoint import Checkpoint

OLDEST = (10, 8)
"""Strong typing in bfloat16, and IPluginV3 with what our plugins use."""

WORKSPACE_BYTES = 8 << 30
"""Scratch memory that a tactic may take, at most."""


def build(checkpoint: Checkpoint, directory: Path, options: BuildOptions) -> Built:
    """Write the plan and its plugins to `directory`; raises BuildError naming what disagrees."""
    if tuple(map(int, trt.__version__.split(".")[:2])) < OLDEST:
        raise BuildError(f"TensorRT {trt.__version__}: expected at least 10.8")
    library = options.plugin_library
    if library is None or not library.is_file():
        raise BuildError(
            f"plugin library {library}: not found; build it as plugins/README.md says, and pass "
            "--plugin-library"
        )
    shutil.copyfile(library, directory / PLUGINS)
    schema = checkpoint.config.features
    largest_first = sorted({options.batch_requests, 1}, reverse=True)
    limits = [options.limits(schema, requests) for requests in largest_first]
    graph = strip_bodies(tensorrt_graph(checkpoint.model, options.precision))

    log = Log()
    builder = trt.Builder(log)
    registry = builder.get_plugin_registry()
    if registry.load_library(str(directory / PLUGINS)) is None:
        raise BuildError(f"{library}: TensorRT cannot load it: {log.errors()}")
    check_plugins(registry, graph)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    _parse(network, log, graph)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    # Triton takes the first profile unless told otherwise, so the largest comes first.
    for largest in limits:
        profile = builder.create_optimization_profile()
        for name, shape in profile_shapes(schema, largest).items():
            profile.set_shape(name, (shape.smallest,), (shape.typical,), (shape.largest,))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"profile of {largest}: TensorRT refuses it: {log.errors()}")
    cache = options.timing_cache
    known = cache.read_bytes() if cache is not None and cache.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"TensorRT {trt.__version__} cannot build the engine: {log.errors()}")
    (directory / PLAN).write_bytes(memoryview(plan))
    if cache is not None:
        cache.write_bytes(memoryview(config.get_timing_cache().serialize()))
    builders = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    builders |= {"tensorrt": trt.__version__, "gpu": device_name()}
    return Built(options.precision, TOLERANCE[options.precision], limits[0], builders)


def check_plugins(registry: Any, graph: ir.Model) -> None:
    """Every node's plugin must be registered and take the node's attributes; or BuildError."""
    plugin_version, namespace = PLUGIN_ATTRIBUTES.values()
    for node in plugin_nodes(graph):
        creator = registry.get_creator(node.op_type, plugin_version, namespace)
        if creator is None:
            raise BuildError(
                f"{node.op_type}: the plugin library registers no such plugin of version "
                f"{plugin_version} in namespace {namespace!r}; build it from this source"
            )
        takes = {field.name for field in creator.field_names}
        given = set(node.attributes) - set(PLUGIN_ATTRIBUTES)
        if takes != given:
            raise BuildError(
                f"{node.op_type}: the plugin's fields are {sorted(takes)}, the model gives "
                f"{sorted(given)}; build the plugin library from this source"
            )


def _parse(network: Any, log: Log, graph: ir.Model) -> None:
    parser = trt.OnnxParser(network, log)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        save_onnx(graph, file)
        parsed = parser.parse_from_file(str(file))
    if not parsed:
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        raise BuildError(
            f"TensorRT {trt.__version__} cannot parse the model: "
            + "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors)
        )
    wanted = {str(value.name) for value in graph.graph.inputs}
    found = {network.get_input(number).name for number in range(network.num_inputs)}
    if found != wanted:
        raise BuildError(f"inputs: the parser found {sorted(found)}, expected {sorted(wanted)}")
