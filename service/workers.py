"""Several gateway processes on one port, and the one that watches over them.

    supervisor: embedded Redis, listening socket, links to packages, metrics files
      worker 0..N-1: a whole gateway each; one that has fewest connections takes the next

A worker that dies is started again; one that cannot serve its settings ends them all. Only the
first takes connections before its engines are loaded, to tell so, and until it has loaded them it
is alone: once anybody has said that the service is ready, nobody says otherwise. SIGTERM and SIGHUP
go to every worker. What workers share lies in one directory: counts are kept in files by
prometheus_client, so those of a worker that died are not lost, and each alias has a link to the
package that serves. A switch asked of one worker moves the link, which all of them follow.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic, sleep
from typing import Protocol

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

from service.accepting import Accepting, Part
from service.errors import BadSetting
from service.exposition import METRICS_DIR
from service.settings import Settings

log = logging.getLogger("mtgr")


class Serve(Protocol):
    """Serve settings, read again by `reread`, on a listening socket until SIGTERM."""

    def __call__(
        self,
        settings: Settings,
        reread: Callable[[], Settings],
        port: socket.socket,
        part: Part,
    ) -> None: ...


CANNOT_SERVE = 3
"""Exit status of a worker whose settings cannot be served."""

ENDINGS = (signal.SIGTERM, signal.SIGINT)

POLL_S = 0.2

SHORT_LIFE_S, FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 0.1, 5.0
"""A worker that lived less is started after a pause, which doubles."""

PR_SET_PDEATHSIG = 1


def supervise(settings: Settings, reread: Callable[[], Settings] | None, serve: Serve) -> None:
    """Run `settings.workers` workers until SIGTERM or SIGINT; raises BadSetting as one of them."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with (
        tempfile.TemporaryDirectory(prefix="mtgr-workers-") as name,
        socket.create_server((settings.host, settings.port), family=family, backlog=2048) as port,
    ):
        directory = Path(name)
        os.environ[METRICS_DIR] = name
        for alias, model in settings.models.items():
            (directory / alias).symlink_to(model.package.absolute())
        log.info("%d workers on %s", settings.workers, port.getsockname())
        _Supervisor(directory, port, settings, reread or (lambda: settings), serve).run()


def linked(settings: Settings, directory: Path) -> Settings:
    """The settings with the workers' links in place of packages."""
    models = {
        alias: model.model_copy(update={"package": directory / alias})
        for alias, model in settings.models.items()
    }
    return settings.model_copy(update={"models": models})


def move_link(link: Path, package: Path) -> None:
    """Have a link point to another package, in one step."""
    if link.resolve() == package.resolve():
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.symlink_to(package.resolve())
    fresh.replace(link)


class _Supervisor:
    def __init__(
        self,
        directory: Path,
        port: socket.socket,
        settings: Settings,
        reread: Callable[[], Settings],
        serve: Serve,
    ):
        self._directory, self._port = directory, port
        self._settings, self._reread, self._serve = settings, reread, serve
        self._processes: dict[int, tuple[BaseProcess, Connection, float]] = {}
        self._accepting = Accepting(settings.workers)
        self._ending = False
        self._pause_s = FIRST_PAUSE_S

    def run(self) -> None:
        for ending in ENDINGS:
            signal.signal(ending, self._end)
        signal.signal(signal.SIGHUP, lambda number, _: self._tell(number))
        try:
            for slot in range(self._settings.workers):
                if not self._ending:
                    self._start(slot, self._accepting.part(slot, early=slot == 0))
            while self._processes:
                wait([process.sentinel for process, _, _ in self._processes.values()], POLL_S)
                for slot, (process, report, since) in list(self._processes.items()):
                    if process.exitcode is not None:
                        self._ended(slot, process, report, since)
        finally:
            self._end(signal.SIGTERM, None)
            for process, _, _ in self._processes.values():
                process.join()

    def _start(self, slot: int, part: Part) -> None:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        # Forked: what is loaded is shared, and nothing here has threads.
        process = multiprocessing.get_context("fork").Process(
            target=self._work, args=(slot, theirs, part), name=f"worker-{slot}"
        )
        # A signal that came meanwhile would be lost on a worker that nobody tells yet, and that has
        # the supervisor's handlers still.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
        try:
            process.start()
            self._processes[slot] = process, ours, monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
        theirs.close()

    def _ended(self, slot: int, process: BaseProcess, report: Connection, since: float) -> None:
        del self._processes[slot]
        mark_process_dead(slot, str(self._directory))  # type: ignore[no-untyped-call]  # the library's
        if process.exitcode == CANNOT_SERVE:
            raise BadSetting(report.recv())
        if self._ending:
            return
        self._accepting.ended(slot)
        log.error("worker %d ended with status %s; starting another", slot, process.exitcode)
        if monotonic() - since < SHORT_LIFE_S:
            sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
        else:
            self._pause_s = FIRST_PAUSE_S
        if not self._ending:
            self._start(slot, self._accepting.part(slot))

    def _end(self, number: int, _: object) -> None:
        self._ending = True
        self._port.close()  # else connections would queue where nobody takes them any more
        self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for process, _, _ in self._processes.values():
            if process.exitcode is None and process.pid is not None:
                with suppress(ProcessLookupError):  # a signal came as its end was being read
                    os.kill(process.pid, number)

    def _work(self, slot: int, report: Connection, part: Part) -> None:
        """In the worker: serve, or say why that cannot be."""
        for ending in ENDINGS:
            signal.signal(ending, lambda *_: sys.exit(0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # ends with the supervisor
        # The slot's counts go on where those of a worker that died in it have ended.
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]  # the library's
        (self._directory / f"worker-{slot}.pid").write_text(str(os.getpid()))
        try:
            self._serve(
                linked(self._settings, self._directory),
                lambda: linked(self._reread(), self._directory),
                self._port,
                part,
            )
        except BadSetting as problem:
            report.send(str(problem))
            os._exit(CANNOT_SERVE)
