"""Shape buckets: a batch runs in the smallest captured shape that holds it, its rest padded.

Padding rows are computed and never read, so a bucket costs time only. Needs NumPy only.
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import ge
from typing import Any, NamedTuple

from numpy.typing import NDArray

from engine_build.runtime.tensors import OFFSET_ROWS, engine_inputs
from model_def.batch import ALIGNMENT, PackedBatch
from model_def.schema import FeatureSchema

STEP = 32
"""Rows to which a bucket's segments are rounded up, so that one serves many nearby sizes."""

MOST_PADDING = 0.1
"""Share of a bucket's rows that may be padding for the sizes it was chosen for."""


class Size(NamedTuple):
    """Rows of a batch, or of a bucket, over all its requests. A tuple, since each run makes one
    and looks for a bucket that holds it."""

    requests: int
    lifelong: int
    realtime: int
    candidates: int


def size_of(batch: PackedBatch) -> Size:
    """The rows of a batch, as the bucket that it fills exactly."""
    arrays = batch.arrays
    lifelong, realtime, candidates = (int(arrays[offsets][-1]) for offsets in OFFSET_ROWS)
    return Size(batch.requests, lifelong, realtime, candidates)


def holds(bucket: Size, size: Size) -> bool:
    """Whether every segment of the size fits."""
    return all(map(ge, bucket, size))


def tokens(bucket: Size) -> int:
    """Rows that vary: profile rows come with each request and are few."""
    return bucket.lifelong + bucket.realtime + bucket.candidates


def padding(bucket: Size, size: Size) -> float:
    """Share of the bucket's rows that the size leaves empty."""
    return 1.0 - tokens(size) / tokens(bucket)


def fitting(buckets: Iterable[Size], size: Size) -> Size | None:
    """The bucket with the fewest rows that holds the size, if one does."""
    return min((b for b in buckets if holds(b, size)), key=tokens, default=None)


def choose_buckets(sizes: Sequence[Size], largest: Size, most: int) -> tuple[Size, ...]:
    """At most `most` buckets for traffic of these sizes, the largest always among them.

    From the largest size down, a size that no bucket holds within MOST_PADDING opens one, rounded
    up to STEP; of those the ones that take most of the traffic stay.
    """
    buckets: dict[Size, int] = {}
    for size in sorted(sizes, key=tokens, reverse=True):
        close = [b for b in buckets if holds(b, size) and padding(b, size) <= MOST_PADDING]
        bucket = min(close, key=tokens) if close else _rounded(size, largest)
        buckets[bucket] = buckets.get(bucket, 0) + 1
    buckets.pop(largest, None)
    busiest = sorted(buckets, key=lambda bucket: buckets[bucket], reverse=True)
    return (*busiest[: most - 1], largest)


def layout(schema: FeatureSchema, bucket: Size) -> tuple[dict[str, slice], int]:
    """The bytes of each array of the bucket in one buffer, by name, and the buffer's size."""
    rows = {
        "profile": bucket.requests,
        "context": bucket.requests,
        "lifelong": bucket.lifelong,
        "realtime": bucket.realtime,
        "candidate": bucket.candidates,
        "offset": bucket.requests + 1,
    }
    places, end = {}, 0
    for spec in engine_inputs(schema):
        size = rows[spec.rows] * spec.width * spec.dtype.itemsize
        places[spec.name] = slice(end, end + size)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return places, end


def stage(batch: PackedBatch, views: Mapping[str, NDArray[Any]]) -> None:
    """Copy a batch into a bucket's arrays. Requests that the bucket has beyond the batch's are
    empty; rows beyond its offsets keep what an earlier batch left, which nobody reads."""
    for name, view in views.items():
        array = batch.arrays[name]
        view[: len(array)] = array
        if name.endswith("_offsets"):
            view[len(array) :] = array[-1]


def mean_padding(buckets: Sequence[Size], sizes: Sequence[Size]) -> float:
    """Share of padding among the rows computed for this traffic; sizes that none holds left out."""
    pairs = [(bucket, size) for size in sizes if (bucket := fitting(buckets, size)) is not None]
    computed = sum(tokens(bucket) for bucket, _ in pairs)
    return 1.0 - sum(tokens(size) for _, size in pairs) / computed if computed else 0.0


def _rounded(size: Size, largest: Size) -> Size:
    def up(segment: str) -> int:
        most, wanted = int(getattr(largest, segment)), int(getattr(size, segment))
        return min(most, -(-wanted // STEP) * STEP)

    return Size(
        requests=size.requests,
        lifelong=up("lifelong"),
        realtime=up("realtime"),
        candidates=up("candidates"),
    )
