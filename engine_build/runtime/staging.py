"""Requests as they came -> a bucket's host buffer, in one call of the kernels' library.

`packed_batch`, `merge` and `buckets.stage` do the same in a hundred calls of NumPy. At light load
each of them runs with cold caches, and together they took longer than the model on the GPU. Needs
NumPy and the library's function only.
"""

from collections.abc import Callable, Sequence
from ctypes import addressof

import numpy as np
from numpy.typing import NDArray

from engine_build.runtime.buckets import Size, layout
from engine_build.runtime.tensors import OFFSET_ROWS
from model_def.schema import ArraySpec, FeatureSchema
from plugins.abi import CONTENTS, INT, SEGMENTS, Packed, PackedArray


class Staging:
    """Into one bucket's buffer `host`, laid out by `buckets.layout`; `function` is `mtgr_stage`."""

    def __init__(
        self,
        function: Callable[..., int],
        schema: FeatureSchema,
        bucket: Size,
        host: NDArray[np.uint8],
    ):
        places, size = layout(schema, bucket)
        assert len(host) == size
        self._function, self._host = function, host
        described = [_described(spec, places.get(spec.name)) for spec in schema.arrays]
        self._arrays = (PackedArray * len(described))(*described)
        self._capacity = (INT * len(SEGMENTS))(*bucket)
        # Addresses, since ctypes would make each an object of its own in every call.
        self._fixed = addressof(self._arrays), len(described)
        self._target = addressof(self._capacity), host.ctypes.data

    def __call__(self, requests: Sequence[NDArray[np.uint8]]) -> bool:
        """Stage `packed_tensor`s as one batch, in order. False where one of them is not what its
        head says, or they do not fit: the buffer then holds a part."""
        packed = (Packed * len(requests))(
            *(Packed(request.ctypes.data, len(request)) for request in requests)
        )
        batch = addressof(packed), len(requests)
        return self._function(*self._fixed, *batch, *self._target) == 0


def _described(spec: ArraySpec, place: slice | None) -> PackedArray:
    rows, content = spec.rows, "values"
    if rows == "offset":
        rows, content = OFFSET_ROWS[spec.name], "offsets"
    elif spec.name in CONTENTS:
        content = spec.name
    return PackedArray(
        SEGMENTS.index("request" if rows in ("profile", "context") else rows),
        CONTENTS.index(content),
        spec.width * spec.dtype.itemsize,
        -1 if place is None else place.start,
    )
