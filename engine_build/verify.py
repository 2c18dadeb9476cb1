"""Engine against PyTorch: the package's golden requests, and requests it has never seen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine_build.package import pytorch_scores
from engine_build.requests import random_request
from engine_build.runtime.golden import Golden, replay
from engine_build.runtime.manifest import EngineKind
from engine_build.runtime.package import open_package
from model_def.checkpoint import load


@dataclass(frozen=True)
class Verdict:
    """The largest score difference of one engine, and what its manifest allows."""

    kind: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the engine may serve."""
        return self.difference <= self.tolerance


def verify(path: Path, kinds: Sequence[EngineKind], requests: int, seed: int) -> Iterator[Verdict]:
    """Check the engines of `kinds`, or all of a package, on its golden requests and on `requests`
    random ones.

    PyTorch scores them all anew from the package's own weights.
    """
    package = open_package(path)
    checkpoint = load(path)
    schema = package.config.features
    rng = np.random.default_rng(seed)
    known = {name: table.ids for name, table in checkpoint.id_tables.items()}
    batches = [golden.request for golden in package.golden]
    for _ in range(requests):
        lifelong = int(rng.integers(0, schema.lifelong_cap + 1))
        realtime = int(rng.integers(0, schema.realtime_cap + 1))
        candidates = int(rng.integers(1, 200))
        batches.append(random_request(schema, rng, lifelong, realtime, candidates, known))
    expected = [Golden(batch, pytorch_scores(checkpoint.model, batch)) for batch in batches]
    for kind in kinds or tuple(package.manifests):
        engine = package.load_engine(kind)
        tolerance = package.manifests[kind].tolerance
        yield Verdict(kind, replay(engine, expected, schema), tolerance)
