"""`config.pbtxt`: what Triton is told of a model, as its own protobuf message.

One description serves every engine kind; only the backend, its instances and the making of
offsets differ. Knows no files.
"""

from collections.abc import Sequence
from typing import Any, Literal

from google.protobuf.json_format import ParseDict
from google.protobuf.text_format import MessageToString
from pydantic import Field
from tritonclient.grpc.model_config_pb2 import ModelConfig

from engine_build.runtime.golden import Golden
from engine_build.runtime.manifest import EngineKind, Limits, Manifest
from engine_build.runtime.packed import PACKED
from engine_build.runtime.tensors import (
    OFFSET_ROWS,
    offset_input_name,
    offset_source,
    request_tensors,
    served_name,
)
from model_def.config import PackageConfig
from model_def.schema import ArraySpec, FeatureSchema, Frozen

Backend = Literal["python", "tensorrt"]

TYPES = {
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
}
"""Triton's name of each dtype of a packed batch."""


class RepositoryError(Exception):
    """A package and options that make no servable model; names the cause and the fix."""


class ServingOptions(Frozen):
    """How a model is scheduled. Each says what it trades."""

    max_candidates: int = Field(default=2000, ge=1, description="of one request; more is refused")
    batch_requests: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="requests in one run: more for throughput, fewer for the first one's wait",
    )
    batch_delay_us: int = Field(
        default=0,
        ge=0,
        description="wait for batch mates: 0 batches what has queued behind a run already; "
        "longer fills batches at light load, and every request pays for it",
    )
    bounded_queue: bool | None = Field(
        default=None,
        description="Triton rejects beyond queue-requests and queue-timeout-ms. It then prepares "
        "no batch ahead, and a request queued behind a run waits for the next one to come, or 500 "
        "ms (Triton 2.51 and later): bounded only for tensorrt unless asked for. The gateway "
        "bounds what it sends either way; what is past its deadline a bounded queue alone drops",
    )
    queue_requests: int = Field(default=64, ge=1, description="queued requests at most")
    queue_timeout_ms: int = Field(
        default=1000,
        ge=1,
        description="longest wait in the queue; a request may only ask for a shorter one",
    )
    instances: int = Field(
        default=1,
        ge=1,
        description="engines run side by side: a request waits less for others' runs, and copies "
        "hide behind another's work, for its memory",
    )
    threads: int = Field(default=1, ge=1, description="cores of one onnx-cpu instance")
    busy_wait: bool = Field(
        default=False,
        description="tensorrt: spin on the GPU's events: some microseconds less, a core more",
    )
    cuda_graphs: bool = Field(
        default=False,
        description="tensorrt: replay captured launches: less host time for batches of a size "
        "seen before; ragged lengths seldom repeat, and each captured size takes memory",
    )  # fmt: skip


def model_config(
    config: PackageConfig,
    manifest: Manifest,
    golden: Sequence[Golden],
    options: ServingOptions,
    backend: Backend,
) -> ModelConfig:
    """The configuration of one engine; raises RepositoryError if its batches can exceed what the
    engine takes."""
    schema = config.features
    check_fits(schema, manifest, options)
    fields: dict[str, Any] = {
        "name": served_name(config, manifest.kind),
        "backend": backend,
        "max_batch_size": options.batch_requests,
        "input": _inputs(schema, backend),
        "output": [
            {"name": task, "data_type": "TYPE_FP32", "dims": [-1]} for task in config.model.tasks
        ],
        "batch_input": [offset_input(schema, name) for name in OFFSET_ROWS],
        "batch_output": [
            {
                "target_name": [task],
                "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE",
                "source_input": ["candidate_visible"],
            }
            for task in config.model.tasks
        ],
        "dynamic_batching": _batching(options, manifest.kind),
        "instance_group": [_instances(manifest.kind, options)],
        "parameters": {
            name: {"string_value": value}
            for name, value in {
                "engine": manifest.kind,
                "version": config.version,
                "checkpoint_sha256": manifest.checkpoint_sha256,
                "layout_hash": f"{schema.layout_hash:016x}",
                "max_candidates": str(options.max_candidates),
                "threads": str(options.threads),
            }.items()
        },
    }
    if backend == "tensorrt":
        cuda = {"graphs": options.cuda_graphs, "busy_wait_events": options.busy_wait}
        fields["optimization"] = {"cuda": cuda}
        # Of the other kinds, loading an engine replays the golden requests on it already.
        fields["model_warmup"] = [_warm_up(schema, n, item) for n, item in enumerate(golden)]
    return ParseDict(fields, ModelConfig())


def as_text(config: ModelConfig) -> str:
    """The text form that Triton reads."""
    return str(MessageToString(config))


def check_fits(schema: FeatureSchema, manifest: Manifest, options: ServingOptions) -> None:
    """Triton's batcher counts requests, not tokens: the largest batch must fit the engine."""
    if manifest.limits is None:
        return
    requests = options.batch_requests
    needed = Limits(
        requests=requests,
        lifelong=requests * schema.lifelong_cap,
        realtime=requests * schema.realtime_cap,
        candidates=requests * options.max_candidates,
    )
    for name, most in manifest.limits:
        if getattr(needed, name) > most:
            raise RepositoryError(
                f"{manifest.kind}: {requests} requests a batch can have {getattr(needed, name)} "
                f"{name}, the engine's largest profile takes {most}; lower batch_requests or "
                "max_candidates, or build the engine with a larger profile"
            )


def offset_input(schema: FeatureSchema, offsets: str) -> dict[str, Any]:
    """How a C++ backend makes an engine's offsets input while it joins a batch: int32 [B+1], the
    accumulated element counts of another input, from zero.
    """
    source = offset_source(schema, offsets)
    return {
        "kind": "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
        "target_name": [offset_input_name(schema, offsets)],
        "data_type": "TYPE_INT32",
        "source_input": [source.name],
    }


def warm_up_file(number: int, spec: ArraySpec) -> str:
    """Name of the file with one tensor of golden request `number`."""
    return f"golden-{number}-{spec.name}"


def _inputs(schema: FeatureSchema, backend: Backend) -> list[dict[str, Any]]:
    """A request's tensors; the Python backend takes them all, or in their place one."""
    types = {spec.name: TYPES[spec.dtype.name] for spec in request_tensors(schema)}
    either = backend == "python"
    if either:
        types[PACKED] = TYPES["uint8"]
    return [
        {
            "name": name,
            "data_type": data_type,
            "dims": [-1],
            "allow_ragged_batch": True,
            "optional": either,
        }
        for name, data_type in types.items()
    ]


def _warm_up(schema: FeatureSchema, number: int, golden: Golden) -> dict[str, Any]:
    inputs = {
        spec.name: {
            "data_type": TYPES[spec.dtype.name],
            "dims": [len(golden.request.arrays[spec.name])],
            "input_data_file": warm_up_file(number, spec),
        }
        for spec in request_tensors(schema)
    }
    return {"name": f"golden-{number}", "batch_size": 1, "inputs": inputs, "count": 1}


def _batching(options: ServingOptions, kind: EngineKind) -> dict[str, Any]:
    batching: dict[str, Any] = {"max_queue_delay_microseconds": options.batch_delay_us}
    bounded = options.bounded_queue
    if bounded or (bounded is None and kind == "tensorrt"):
        batching["default_queue_policy"] = {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": 1000 * options.queue_timeout_ms,
            "allow_timeout_override": True,
            "max_queue_size": options.queue_requests,
        }
    return batching


def _instances(kind: EngineKind, options: ServingOptions) -> dict[str, Any]:
    return {
        "kind": "KIND_CPU" if kind == "onnx-cpu" else "KIND_GPU",
        "count": options.instances,
    }
