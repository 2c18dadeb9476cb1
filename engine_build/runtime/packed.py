"""One request as one tensor, for a server that runs our code: its packed batch's own buffer.

Each of the named tensors of `tensors.py` is parsed, copied and wrapped on its way, which costs more
than the bytes do. So Python-backend models take this one as well, in place of them all: the row
counts int32 [lifelong, real-time, candidates, 0], then the buffer, whose layout follows from them
and the schema. Needs NumPy only.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from engine_build.runtime.tensors import OFFSET_ROWS, TensorError, check_rows
from model_def.batch import PackedBatch, from_buffer
from model_def.schema import FeatureSchema

PACKED = "packed"
"""Name of the tensor, uint8 [HEAD_BYTES + the buffer's]."""

HEAD = struct.Struct("<4i")
HEAD_BYTES = HEAD.size
"""As the arrays are aligned, so that they stay aligned behind it."""


def packed_head(batch: PackedBatch) -> bytes:
    """What precedes the buffer."""
    counts = [batch.arrays[offsets].item(-1) for offsets in OFFSET_ROWS]
    return HEAD.pack(*counts, 0)


def packed_tensor(batch: PackedBatch) -> NDArray[np.uint8]:
    """The tensor of one request."""
    return np.concatenate([np.frombuffer(packed_head(batch), np.uint8), batch.buffer])


def row_counts(tensor: NDArray[np.uint8]) -> tuple[int, int, int]:
    """What a tensor says of its lifelong, real-time and candidate rows; raises TensorError where
    it is too short to."""
    if tensor.dtype != np.uint8 or tensor.ndim != 1 or len(tensor) < HEAD_BYTES:
        raise TensorError(f"{PACKED}: expected a 1-D tensor of uint8, {HEAD_BYTES} at least")
    lifelong, realtime, candidates, _ = HEAD.unpack_from(tensor.data)
    return lifelong, realtime, candidates


def packed_batch(schema: FeatureSchema, tensor: NDArray[np.uint8]) -> PackedBatch:
    """The batch, views into the tensor, checked as `request_batch` does. Raises TensorError."""
    counts = row_counts(tensor)
    rows = dict(zip(OFFSET_ROWS.values(), counts, strict=True))
    if min(counts) < 0:
        raise TensorError(f"{PACKED}: {rows}; expected counts of rows")
    try:
        batch = from_buffer(
            schema, {"profile": 1, "context": 1, "offset": 2, **rows}, tensor[HEAD_BYTES:]
        )
    except ValueError as error:
        raise TensorError(f"{PACKED}: {error} for {rows} rows") from error
    derived = {name: [0, rows[segment]] for name, segment in OFFSET_ROWS.items()}
    derived["context_candidates"] = [rows["candidate"]]
    for name, expected in derived.items():
        if batch.arrays[name].tolist() != expected:
            raise TensorError(f"{name}: expected {expected}, of one request")
    check_rows(schema, rows, batch.arrays)
    return batch
