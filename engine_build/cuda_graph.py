"""Builds engine kind `cuda-graph`: it needs no more than the checkpoint and its shape buckets."""

import csv
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from pydantic import ValidationError

from engine_build.build import TOLERANCE, BuildError, BuildOptions, Built
from engine_build.runtime.buckets import Size, choose_buckets, mean_padding
from engine_build.runtime.cuda_graph import BUCKETS
from engine_build.runtime.manifest import Limits
from model_def.checkpoint import Checkpoint
from model_def.schema import FeatureSchema

MOST_BUCKETS = 48
"""A captured graph costs about a second of start-up and some megabytes."""


def build(checkpoint: Checkpoint, directory: Path, options: BuildOptions) -> Built:
    """Write the buckets to `directory`, and how much of them this traffic leaves empty.

    Raises BuildError for traffic that cannot be read.
    """
    schema = checkpoint.config.features
    limits = options.limits(schema, options.batch_requests)
    sizes = read_sizes(options.traffic) if options.traffic else assumed_sizes(schema, options)
    buckets = choose_buckets(sizes, _size(limits), MOST_BUCKETS)
    saved = {
        "padding": mean_padding(buckets, sizes),
        "buckets": [bucket._asdict() for bucket in buckets],
    }
    (directory / BUCKETS).write_text(json.dumps(saved, indent=1) + "\n")
    tolerance = TOLERANCE[options.precision]
    return Built(options.precision, tolerance, limits, {"torch": torch.__version__})


def read_sizes(file: Path) -> list[Size]:
    """Sizes of batches from a CSV file with the columns requests, lifelong, realtime and
    candidates, a line a batch."""
    try:
        with file.open(newline="") as lines:
            sizes = [_size(Limits.model_validate(row)) for row in csv.DictReader(lines)]
    except (OSError, ValidationError) as error:
        raise BuildError(f"{file}: expected {', '.join(Limits.model_fields)}: {error}") from error
    if not sizes:
        raise BuildError(f"{file}: holds no sizes")
    return sizes


def assumed_sizes(schema: FeatureSchema, options: BuildOptions) -> Sequence[Size]:
    """One request with sequences and candidates of a quarter, a half and all of what they may be:
    for a model that has seen no traffic yet."""
    parts = (0.25, 0.5, 1.0)
    return [
        Size(
            requests=1,
            lifelong=round(lifelong * schema.lifelong_cap),
            realtime=schema.realtime_cap,
            candidates=max(1, round(candidates * options.max_candidates)),
        )
        for lifelong, candidates in product(parts, parts)
    ]


def _size(limits: Limits) -> Size:
    return Size(**limits.model_dump())
