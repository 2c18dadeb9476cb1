"""Another engine takes an alias over, and no request is lost.

    load -> warm -> golden parity -> shadow, if asked for -> flip -> probation -> drain

Until the flip the old engine serves alone; a new one that cannot be loaded, or whose scores are
off, is refused. Through its probation the old engine stays loaded, and a burst of failures goes
back to it. A switch is asked for by name, or by pointing the alias's package, a symbolic link,
at another package.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from engine_build.runtime.engine import EngineError
from model_def.batch import PackedBatch
from model_def.config import PackageConfig
from model_def.schema import FeatureSchema
from service.backends.generation import Generation, LoadedBackend, Shadow
from service.errors import BadSetting, NotServing, SwitchRefused
from service.settings import ModelSettings

log = logging.getLogger("mtgr")

OpenModel = Callable[[ModelSettings], tuple[PackageConfig, LoadedBackend]]
"""Opens a package and the backend that will load its engine; raises BadSetting."""

OUTCOMES = ("flipped", "refused", "rolled_back", "kept")
"""How a switch ends, or goes on."""

PROBATION_S = 30.0
"""How long a new engine may fall back to the old one."""

SHADOW_WAIT_S = 60.0
"""Longest wait for the shadow's requests to come."""

POLL_S = 1.0
"""Between two looks at where an alias's link points."""


class Slot(Protocol):
    """Where an alias's engine sits: whatever `live` is serves every request that comes."""

    alias: str
    live: Generation


class Observer(Protocol):
    """Who counts switches."""

    def switching(self, alias: str, under_way: bool) -> None:
        """Another engine is being loaded, verified or shadowed; or no longer."""

    def switched(self, alias: str, outcome: str) -> None:
        """`outcome` is one of OUTCOMES."""

    def shadowed(self, alias: str, difference: float) -> None:
        """Largest difference of a probability between the two engines in one request."""


class Switcher:
    """The way to another engine, for one alias."""

    def __init__(
        self,
        slot: Slot,
        settings: ModelSettings,
        open_model: OpenModel,
        warm_up: Callable[[FeatureSchema], tuple[PackedBatch, ...]],
        observer: Observer,
        publish: Callable[[Path, Path], None] | None = None,
    ):
        """`publish`, if given, has the alias's link point to the package that serves now, for the
        other workers to follow."""
        self._slot, self._settings, self._publish = slot, settings, publish
        self._open_model, self._warm_up, self._observer = open_model, warm_up, observer
        self.package = settings.package.resolve()
        """Of the engine that serves now."""
        self._busy = asyncio.Lock()
        self._probation: asyncio.Task[None] | None = None
        self._standby: Generation | None = None
        self._standby_package: Path | None = None

    async def switch(self, package: Path, shadow_requests: int = 0) -> str:
        """Serve `package` from now on; its version. Raises SwitchRefused with the reason."""
        if self._busy.locked() or self._probation is not None:
            raise SwitchRefused("another switch is under way; come back when it has ended")
        async with self._busy:
            self._observer.switching(self._slot.alias, True)
            try:
                fresh = await self._load(package)
                await self._shadow(fresh, shadow_requests)
            except (BadSetting, NotServing, EngineError) as problem:
                self._observer.switched(self._slot.alias, "refused")
                log.error("%s: %s is refused: %s", self._slot.alias, package, problem)
                raise SwitchRefused(str(problem)) from problem
            finally:
                self._observer.switching(self._slot.alias, False)
            old, self._slot.live = self._slot.live, fresh
            before, self.package = self.package, package.resolve()
            self._tell()
            self._observer.switched(self._slot.alias, "flipped")
            log.info("%s: %s serves now", self._slot.alias, fresh.config.version)
            self._standby, self._standby_package = old, before
            self._probation = asyncio.create_task(self._try_out(old, before, fresh))
            return fresh.config.version

    async def watch(self) -> None:
        """Follow the alias's link, for ever; a package that was refused is not tried again."""
        seen = self.package
        while True:
            await asyncio.sleep(POLL_S)
            target = self._settings.package.resolve()
            if target == self.package:
                seen = target
            if target == seen:
                continue
            if self._probation is not None and target == self._standby_package:
                self._slot.live.failing.set()  # another worker went back
                continue
            try:
                await self.switch(target)
            except SwitchRefused:
                if self._probation is not None:
                    continue  # look again after it
            seen = target

    async def close(self) -> None:
        """Stop, and close the engines."""
        if self._probation is not None:
            self._probation.cancel()
            await asyncio.gather(self._probation, return_exceptions=True)
        await self._slot.live.backend.close()
        if self._standby is not None and self._standby is not self._slot.live:
            await self._standby.backend.close()

    async def _load(self, package: Path) -> Generation:
        settings = self._settings.model_copy(update={"package": package.resolve()})
        config, backend = await asyncio.to_thread(self._open_model, settings)
        require_same_requests(self._slot.live.config.features, config.features)
        fresh = Generation(config, backend, self._slot.live.backend.watch)
        await backend.start(self._warm_up(config.features))
        return fresh

    async def _shadow(self, fresh: Generation, wanted: int) -> None:
        if not wanted:
            return
        shadow = Shadow(
            fresh.backend, wanted, lambda d: self._observer.shadowed(self._slot.alias, d)
        )
        live = self._slot.live
        live.shadow = shadow
        try:
            async with asyncio.timeout(SHADOW_WAIT_S):
                await shadow.done.wait()
        except TimeoutError:
            log.info("%s: %d shadow requests came", self._slot.alias, shadow.compared)
        finally:
            live.shadow = None
        if shadow.failed:
            await fresh.backend.close()
            raise NotServing(
                f"{shadow.failed} of {shadow.failed + shadow.compared} shadow requests failed"
            )

    def _tell(self) -> None:
        if self._publish is not None:
            self._publish(self._settings.package, self.package)

    async def _try_out(self, old: Generation, before: Path, fresh: Generation) -> None:
        """Keep the old engine at hand until the new one has proved itself, then drain the loser."""
        ended, outcome = old, "kept"
        try:
            async with asyncio.timeout(PROBATION_S):
                await fresh.failing.wait()
        except TimeoutError:
            log.info("%s: %s has proved itself", self._slot.alias, fresh.config.version)
        else:
            self._slot.live, ended, outcome = old, fresh, "rolled_back"
            self.package = before
            self._tell()
            log.error("%s: %s failed in a burst, went back", self._slot.alias, fresh.config.version)
        self._observer.switched(self._slot.alias, outcome)
        await ended.retire()
        self._standby = self._probation = None


def require_same_requests(old: FeatureSchema, new: FeatureSchema) -> None:
    """The gateway checks requests and reads records by the alias's schema: another engine must
    take the same. Transforms may differ. Raises NotServing."""
    if old.taken != new.taken:
        raise NotServing(
            f"schema {new.name!r} takes other features than {old.name!r} of this alias; serve it "
            "under an alias and a scene of its own"
        )
