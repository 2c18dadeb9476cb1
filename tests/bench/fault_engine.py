"""An engine in the gateway's own process that can be made to fail."""

import signal
from functools import partial
from threading import Event
from time import sleep

from engine_build.runtime.engine import Engine, Scores
from engine_build.runtime.package import open_package
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from service.backends.inprocess import InProcessBackend
from service.settings import ModelSettings

SIGNALS = {
    mode: signal.SIGRTMIN + number
    for number, mode in enumerate(("well", "erroring", "slow", "frozen"))
}
SLOW_S = 0.05


class EngineFault:
    """How all engines of this process fail from now on, told by a signal of SIGNALS."""

    def __init__(self) -> None:
        self._mode = "well"
        self._thawed = Event()
        self._thawed.set()
        for mode, number in SIGNALS.items():
            signal.signal(number, partial(self._enter, mode))

    def _enter(self, mode: str, number: int, frame: object) -> None:
        self._mode = mode
        (self._thawed.clear if mode == "frozen" else self._thawed.set)()

    def suffer(self) -> None:
        """Raise, take SLOW_S, or return only once it is no longer frozen."""
        if self._mode == "erroring":
            raise RuntimeError("an error that was asked for")
        if self._mode == "slow":
            sleep(SLOW_S)
        self._thawed.wait()

    def open_model(self, settings: ModelSettings) -> tuple[PackageConfig, InProcessBackend]:
        """As `service.backends.inprocess.open_model` does it, of an engine that suffers."""
        package = open_package(settings.package)

        def load() -> Engine:
            return FaultyEngine(
                package.load_engine(settings.engine, threads=settings.threads), self
            )

        backend = InProcessBackend(load, workers=settings.workers, queue=settings.queue)
        return package.config, backend


class FaultyEngine:
    """An engine behind a fault."""

    def __init__(self, engine: Engine, fault: EngineFault):
        self.kind, self._engine, self._fault = engine.kind, engine, fault

    def run(self, batch: PackedBatch) -> Scores:
        """As the engine, where the fault lets it."""
        self._fault.suffer()
        return self._engine.run(batch)
