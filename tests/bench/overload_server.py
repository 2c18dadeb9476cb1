"""A gateway to be overloaded, in a process of its own: `overload_server PORT REDIS_URL RATE`.

It serves the demo's schema over an engine stub that answers RATE requests a second, one after the
other, and works on whatever it was given, wanted or not; with RATE 0 it answers at once.
"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

import numpy as np

from engine_build.runtime.package import open_package
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.generation import LoadedBackend
from service.breaker import Unwatched, Watch
from service.deadline import Deadline
from service.ranking import Floats
from service.serve import run
from service.settings import ModelSettings, Settings
from tests.conftest import ROOT

DEMO = ROOT / "service" / "demo_package"


class Limited:
    """Scores by position, `rate` requests a second."""

    watch: Watch = Unwatched()
    ready = True

    def __init__(self, rate: float):
        self._each_s = 1 / rate if rate else 0.0
        self._free_at = 0.0

    async def start(self, warm_up: tuple[PackedBatch, ...]) -> None:
        """Nothing to load."""

    async def score(
        self, batch: PackedBatch, deadline: Deadline, user_id: str
    ) -> Mapping[str, Floats]:
        """Probability [K] by task, once its turn is over."""
        if self._each_s:
            self._free_at = max(self._free_at, monotonic()) + self._each_s
            with deadline.bound("backend"):
                await asyncio.sleep(self._free_at - monotonic())
        ctr = np.linspace(0.1, 0.9, batch.candidates, dtype=np.float32)
        return {"ctr": ctr, "ctcvr": ctr * ctr}

    async def close(self) -> None:
        """Nothing to give back."""


def main(port: int, redis_url: str, rate: float) -> None:
    """Serve until a signal."""

    def open_model(settings: ModelSettings) -> tuple[PackageConfig, LoadedBackend]:
        return open_package(settings.package).config, Limited(rate)

    run(
        Settings(
            models={"home": ModelSettings(package=Path(DEMO))}, port=port, redis_url=redis_url
        ),
        open_model=open_model,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
