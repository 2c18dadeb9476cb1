"""Idle cores kept from going to sleep: on each a loop that gives way to all other work."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

SPINNER = "sh"
"""Name of the processes."""


@contextmanager
def cores_awake() -> Iterator[None]:
    """A loop of the lowest priority (SCHED_IDLE) on every core that this process may use."""

    def on(core: int) -> None:
        os.sched_setaffinity(0, {core})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    loops = [
        subprocess.Popen(
            [SPINNER, "-c", "while :; do :; done"], preexec_fn=lambda core=core: on(core)
        )
        for core in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
