"""What each trimming of the payload saves, in bytes and host time, for one request.

    python -m tests.bench.payload

1,000 lifelong and 100 real-time events, 500 candidates. Deduplicated ids are measured beside what
is sent: each distinct id once, and for each token a 16-bit place among them.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model_def.batch import PackedBatch, Sample, pack
from tests.bench.model import SCHEMA, per_candidate_bytes, sample
from tests.bench.timing import seconds

LIFELONG, REALTIME, CANDIDATES, CATALOGUE = 1000, 100, 500, 100_000
ZIPF = 1.2
"""Exponent of how often an item recurs."""


def request() -> Sample:
    """Users come back to items: ids follow Zipf's law; candidates are distinct."""
    rng = np.random.default_rng(0)
    blank = sample(CANDIDATES, LIFELONG, REALTIME)
    catalogue = rng.integers(-(2**63), 2**63, CATALOGUE)
    weights = np.arange(1, CATALOGUE + 1) ** -ZIPF
    weights /= weights.sum()
    for rows, repeats in (
        (blank.lifelong, True),
        (blank.realtime, True),
        (blank.candidates, False),
    ):
        chosen = rng.choice(CATALOGUE, len(rows), replace=repeats, p=weights)
        rows["ids"][:, 0] = catalogue[chosen]
        rows["ids"][:, 1] = catalogue[chosen // 100]  # a brand has many items
    return blank


def wide_bytes(batch: PackedBatch) -> int:
    """The same arrays as a data frame would hold them: every number in 8 bytes."""
    return sum(8 * len(array) for array in batch.arrays.values())


def id_arrays(batch: PackedBatch) -> list[NDArray[np.int64]]:
    """The ids of all segments, one array a segment."""
    return [array for name, array in batch.arrays.items() if name.endswith("_ids")]


def deduplicated(batch: PackedBatch) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Distinct ids, and each token's place among them."""
    ids = np.concatenate(id_arrays(batch))
    distinct, place = np.unique(ids, return_inverse=True)
    return distinct, place.astype(np.uint16)


def main() -> int:
    """Print the table. No bar: what is sent was chosen by it."""
    one = request()
    batch = pack(SCHEMA, one)
    single = replace(one, candidates=one.candidates[:1], context_candidates=np.ones(1, np.int32))
    ids = sum(array.nbytes for array in id_arrays(batch))
    distinct, place = deduplicated(batch)
    separate = {name: array.copy() for name, array in batch.arrays.items()}
    destination = np.empty_like(batch.buffer)

    def copy_arrays() -> None:
        for array in separate.values():
            array.copy()

    sides: dict[str, Callable[[], object]] = {
        "pack": lambda: pack(SCHEMA, one),
        "deduplicate": lambda: deduplicated(batch),
        "one buffer": lambda: np.copyto(destination, batch.buffer),
        "an array each": copy_arrays,
    }
    micros = {name: 1e6 * taken for name, taken in seconds(sides, 301).items()}
    rows = [
        ("user and context again for each candidate, 8 bytes a number",
         CANDIDATES * wide_bytes(pack(SCHEMA, single))),
        ("the same in the smallest dtypes", per_candidate_bytes(one)),
        ("user and context once, 8 bytes a number", wide_bytes(batch)),
        ("user and context once, smallest dtypes: what is sent", batch.payload_bytes),
        ("the same with each distinct id once: not sent",
         batch.payload_bytes - ids + distinct.nbytes + place.nbytes),
    ]  # fmt: skip
    for what, size in rows:
        print(f"{size:>12,} bytes  {what}")  # noqa: T201  # a benchmark's output
    print(  # noqa: T201  # the same
        f"{len(distinct)} of {len(place)} ids are distinct. Host: pack {micros['pack']:.0f} us, "
        f"deduplicating would add {micros['deduplicate']:.0f} us; one copy of the buffer "
        f"{micros['one buffer']:.1f} us, one of each of {len(separate)} arrays "
        f"{micros['an array each']:.1f} us"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
