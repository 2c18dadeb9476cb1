"""Whether a Triton server serves the very engine that the gateway's package describes.

Every step that fails says which, and what would mend it: the server, the repository, the model's
load, its schema, its build, its scores.
"""

import asyncio
from random import random
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from engine_build.runtime.engine import Scores
from engine_build.runtime.golden import largest_difference
from engine_build.runtime.manifest import EngineKind
from engine_build.runtime.package import ModelPackage
from engine_build.runtime.packed import PACKED
from engine_build.runtime.tensors import request_tensors
from model_def.batch import PackedBatch
from service.backends.triton_endpoint import CONTROL_S, Endpoint
from service.deadline import Deadline
from service.errors import DependencyFailed, NotServing

LOAD_S = 600.0
"""Longest wait for a model to load: engines of gigabytes from a slow disk."""

SPREAD_S = 0.5
"""Longest wait before a load is asked for."""

POLL_S = 0.1
"""Between two looks at a load of another's."""

REQUEST_S = 60.0
"""Longest wait for one golden or warm-up request: the first ones of an engine are slow."""


async def bring_up(
    endpoint: Endpoint, package: ModelPackage, kind: EngineKind, warm_up: tuple[PackedBatch, ...]
) -> None:
    """Load the model if it is not, check it, and warm it up. Raises NotServing."""
    await _load(endpoint, package, kind)
    await _compare(endpoint, package, kind)
    await endpoint.share_memory()
    await _replay(endpoint, package, kind)
    for batch in warm_up:
        await _score(endpoint, batch)


async def _load(endpoint: Endpoint, package: ModelPackage, kind: EngineKind) -> None:
    """What another gateway has begun to load is waited for: asked then, Triton would load it once
    more. Gateways that start together do not ask together."""
    if await _state(endpoint, package, kind) == "READY":
        return
    await asyncio.sleep(SPREAD_S * random())
    until = Deadline.after(LOAD_S)
    while (state := await _state(endpoint, package, kind)) == "LOADING" and until.left():
        await asyncio.sleep(POLL_S)
    if state != "READY":
        request = pb.RepositoryModelLoadRequest(model_name=endpoint.name)
        await _ask(
            endpoint,
            endpoint.stub.RepositoryModelLoad(request, timeout=LOAD_S),
            f"cannot load {endpoint.name}; see its log, and mend or add the model again",
        )


async def _state(endpoint: Endpoint, package: ModelPackage, kind: EngineKind) -> str:
    """READY, LOADING, UNAVAILABLE, or empty where it was never loaded."""
    index = await _ask(
        endpoint,
        endpoint.stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=CONTROL_S),
        "does not answer; start it with the command of 'mtgr repository'",
    )
    states = {model.name: str(model.state) for model in index.models}
    if endpoint.name not in states:
        raise NotServing(
            f"Triton at {endpoint.address}: its repository has no model {endpoint.name}, only "
            f"{sorted(states)}; add it: mtgr repository {package.path} REPOSITORY --kind {kind}"
        )
    return states[endpoint.name]


async def _compare(endpoint: Endpoint, package: ModelPackage, kind: EngineKind) -> None:
    answer = await _ask(
        endpoint,
        endpoint.stub.ModelConfig(pb.ModelConfigRequest(name=endpoint.name), timeout=CONTROL_S),
        "does not tell its configuration",
    )
    schema = package.config.features
    taken = {tensor.name for tensor in answer.config.input}
    given, expected = taken - {PACKED}, {spec.name for spec in request_tensors(schema)}
    if given != expected:
        raise NotServing(
            f"{_model(endpoint)} takes other inputs than the schema {schema.name!r} has: lacks "
            f"{sorted(expected - given)}, wants {sorted(given - expected)}; serve the package that "
            "the model was made from"
        )
    endpoint.send_packed(PACKED in taken)
    parameters = {n: p.string_value for n, p in answer.config.parameters.items()}
    manifest = package.manifests[kind]
    for name, expects in {
        "engine": kind,
        "layout_hash": f"{schema.layout_hash:016x}",
        "checkpoint_sha256": manifest.checkpoint_sha256,
    }.items():
        if parameters.get(name) != expects:
            raise NotServing(
                f"{_model(endpoint)} has {name} {parameters.get(name)}, the package "
                f"{package.path} {expects}: two builds of one version; add the model again"
            )


async def _replay(endpoint: Endpoint, package: ModelPackage, kind: EngineKind) -> None:
    tolerance = package.manifests[kind].tolerance
    for golden in package.golden:
        scores = await _score(endpoint, golden.request)
        difference = largest_difference(Scores(scores), golden.scores)
        if not difference <= tolerance:
            raise NotServing(
                f"{_model(endpoint)}: scores differ from PyTorch's by {difference:.2g}, more than "
                f"{tolerance:g}; build the engine again"
            )


async def _score(endpoint: Endpoint, batch: PackedBatch) -> Any:
    try:
        return await endpoint.score(batch, Deadline.after(REQUEST_S))
    except DependencyFailed as failure:
        raise NotServing(
            f"{_model(endpoint)}: {failure.reason} on a golden or warm-up request: "
            f"{_detail(failure.__cause__)}"
        ) from failure


async def _ask(endpoint: Endpoint, call: Any, problem: str) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise NotServing(f"Triton at {endpoint.address} {problem}: {_detail(error)}") from error


def _model(endpoint: Endpoint) -> str:
    return f"model {endpoint.name} of Triton at {endpoint.address}"


def _detail(error: BaseException | None) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)
