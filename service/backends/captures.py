"""Slow and degraded requests kept on disk with all that their engine read, for `mtgr replay`.

A thread of its own packs and writes; what it cannot keep up with is dropped and counted. No answer
waits for it.
"""

import errno
import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from math import inf
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from time import monotonic

import numpy as np

from engine_build.runtime.capture import About, Capture, Origin, write_capture
from engine_build.runtime.manifest import Limits
from model_def.batch import pack
from service.deadline import Stages
from service.errors import BadSetting
from service.metrics import Metrics
from service.ranking import Model, RankedItems, RankRequest, Run, Shared
from service.settings import ModelSettings, Settings

log = logging.getLogger("mtgr")

QUEUE = 16
"""Requests waiting to be written at most."""

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Offered:
    """A request worth keeping, as it was answered."""

    why: str
    scene: str
    model: Model
    package: Path
    settings: ModelSettings
    request: RankRequest
    ranked: RankedItems
    stages: Stages
    at: datetime


class Captures:
    """Chooses requests and writes them under one directory, bounded in files and in bytes."""

    def __init__(self, directory: Path, settings: Settings, metrics: Metrics):
        self.settings = settings
        self._directory, self._metrics = directory, metrics
        self._queue: Queue[Offered | None] = Queue(QUEUE)
        self._thread = Thread(target=self._run, name="captures", daemon=True)
        self._numbers = count()
        self._last: dict[str, float] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def offer(
        self,
        scene: str,
        model: Model,
        package: Path,
        settings: ModelSettings,
        request: RankRequest,
        ranked: RankedItems,
        stages: Stages,
    ) -> None:
        """Keep a request that was slow or degraded, unless one like it was kept just now; never
        waits, never raises."""
        taken_ms = 1e3 * sum(stages.seconds.values())
        why = ranked.reason or ("slow" if taken_ms >= self.settings.capture_slow_ms else None)
        now = monotonic()
        if why is None or now - self._last.get(why, -inf) < self.settings.capture_every_s:
            return
        self._last[why] = now
        at = datetime.now(UTC)
        kept = Offered(why, scene, model, package, settings, request, ranked, stages, at)
        try:
            self._queue.put_nowait(kept)
        except Full:
            self._metrics.captures.labels("overflow").inc()

    def _run(self) -> None:
        while (offered := self._queue.get()) is not None:
            try:
                self._write(offered)
                outcome = "written"
            except OSError as error:
                outcome = "disk_full" if error.errno in FULL else "error"
                log.error("a request could not be captured: %s", error)
            except Exception:  # a bug of ours must not end the capture of all later requests
                outcome = "error"
                log.exception("a request could not be captured")
            self._metrics.captures.labels(outcome).inc()

    def _write(self, kept: Offered) -> None:
        capture = capture_of(kept)
        name = f"capture-{kept.at:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}-{next(self._numbers)}.npz"
        write_capture(capture, self._directory / name)
        self._prune()

    def _prune(self) -> None:
        """Remove the oldest captures beyond what may be kept."""
        kept = bytes_kept = 0
        for path in sorted(self._directory.glob("capture-*.npz"), reverse=True):
            try:
                bytes_kept += path.stat().st_size
            except FileNotFoundError:
                continue  # another worker has removed it
            kept += 1
            if kept > self.settings.capture_files or bytes_kept > self.settings.capture_bytes:
                path.unlink(missing_ok=True)


def capture_of(kept: Offered) -> Capture:
    """What was run for a request, its batch mates among it, and what came of it."""
    model, settings, ranked, whole = kept.model, kept.settings, kept.ranked, kept.ranked.whole
    run = whole.tasks.run if isinstance(whole.tasks, Shared) else None
    if run is None:
        run = Run((pack(model.schema, whole.sample),), 0, whole.tasks)
    about = About(
        request_id=kept.request.request_id,
        scene=kept.scene,
        captured_ms=int(1e3 * kept.at.timestamp()),
        why=kept.why,
        ranked_by=ranked.ranked_by,
        stages_ms={stage: 1e3 * taken for stage, taken in kept.stages.seconds.items()},
        missing=dict(ranked.missing),
        layout_hash=f"{model.schema.layout_hash:016x}",
        origin=Origin.of(
            kept.package, model.version, settings.engine, settings.backend, settings.threads
        ),
        position=run.position,
        requests=len(run.requests),
        bucket=None if run.bucket is None else Limits(**run.bucket),
    )
    return Capture(
        about=about,
        requests=run.requests,
        tasks={task: np.asarray(values, np.float32) for task, values in run.tasks.items()},
        item_ids=kept.request.item_ids,
        scores=np.asarray(whole.scores, np.float64),
    )


def open_captures(settings: Settings, metrics: Metrics) -> Captures | None:
    """As the settings ask, or None; raises BadSetting where the directory cannot be made."""
    if not settings.capture_dir:
        return None
    directory = Path(settings.capture_dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadSetting(f"capture_dir: {error}") from None
    return Captures(directory, settings, metrics)
