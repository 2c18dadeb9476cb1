"""One request as the named tensors that cross to an engine server, and back into a batch.

A server takes requests one by one and batches them itself, so each sends only its values: row
counts and offsets follow from the lengths. Needs NumPy only; knows nothing of Triton.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_build.runtime.manifest import EngineKind
from model_def.batch import PackedBatch, from_arrays
from model_def.config import PackageConfig
from model_def.schema import ArraySpec, FeatureSchema

OFFSET_ROWS = {
    "lifelong_offsets": "lifelong",
    "rt_offsets": "realtime",
    "candidate_offsets": "candidate",
}
"""The rows that each offsets array counts."""


def offset_source(schema: FeatureSchema, offsets: str) -> ArraySpec:
    """The array whose element counts give an offsets array, where a server counts elements.

    With one element a row it gives the offsets themselves. The lifelong segment of most schemas
    has no such array, and one more byte a token would be sent only for this; see
    `offset_input_name`.
    """
    specs = [spec for spec in request_tensors(schema) if spec.rows == OFFSET_ROWS[offsets]]
    return next((spec for spec in specs if spec.width == 1), specs[0])


def offset_input_name(schema: FeatureSchema, offsets: str) -> str:
    """The input of an engine whose server counts elements: the offsets array itself, or
    `<rows>_elements`, which the engine divides by the width of `offset_source`."""
    one = offset_source(schema, offsets).width == 1
    return offsets if one else f"{OFFSET_ROWS[offsets]}_elements"


class TensorError(ValueError):
    """A request's tensor that contradicts the schema or the others; names it and what was
    expected."""


def engine_inputs(schema: FeatureSchema) -> tuple[ArraySpec, ...]:
    """The arrays of a packed batch that an engine takes, in order: all but
    `context_candidates`, which the candidates' offsets tell."""
    return tuple(spec for spec in schema.arrays if spec.name != "context_candidates")


def request_tensors(schema: FeatureSchema) -> tuple[ArraySpec, ...]:
    """The 1-D tensors of one request, at most 15.

    All arrays of a packed batch but the offsets, and `context_candidates`: a request has one
    context row, whose candidates are all of its own.
    """
    return tuple(spec for spec in engine_inputs(schema) if spec.rows != "offset")


def served_name(config: PackageConfig, kind: EngineKind) -> str:
    """Name under which a server knows an engine: one for each schema, version and kind."""
    return f"{config.features.name}-{config.version}-{kind}"


def request_batch(schema: FeatureSchema, tensors: Mapping[str, NDArray[Any]]) -> PackedBatch:
    """One request's tensors -> its packed batch, checked, as `pack` made it. Raises TensorError."""
    rows = {"profile": 1, "context": 1}
    for spec in request_tensors(schema):
        tensor = tensors.get(spec.name)
        if tensor is None or tensor.dtype != spec.dtype or tensor.ndim != 1:
            raise TensorError(f"{spec.name}: expected a 1-D tensor of {spec.dtype}")
        count = rows.setdefault(spec.rows, len(tensor) // spec.width)
        if len(tensor) != count * spec.width:
            raise TensorError(
                f"{spec.name}: {len(tensor)} elements; expected {spec.width} for each of "
                f"{count} {spec.rows} rows"
            )
    check_rows(schema, rows, tensors)
    derived: dict[str, NDArray[Any]] = {
        name: np.array([0, rows[segment]], np.int32) for name, segment in OFFSET_ROWS.items()
    }
    derived["context_candidates"] = np.array([rows["candidate"]], np.int32)
    return from_arrays(schema, {**tensors, **derived})


def check_rows(
    schema: FeatureSchema, rows: Mapping[str, int], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Raises TensorError where a request, of so many rows by segment, is longer than the schema
    allows or has a row that sees what is not there."""
    for segment, cap in (("lifelong", schema.lifelong_cap), ("realtime", schema.realtime_cap)):
        if rows[segment] > cap:
            raise TensorError(f"{segment}: {rows[segment]} rows; the schema's most is {cap}")
    # An engine reads the keys that these numbers admit, without looking.
    if (arrays["rt_visible"] > np.arange(rows["realtime"])).any():
        raise TensorError("rt_visible: expected at most the row's own index")
    if (arrays["candidate_visible"] > rows["realtime"]).any():
        raise TensorError(f"candidate_visible: expected at most {rows['realtime']} real-time rows")
