"""Every process of the path on cores of its own, as an operator would do it with cpusets.

Each thread is told, so that servers which run already are moved as well; what they start later
inherits it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LAYOUTS = {
    "pinned": {"gateway": 4, "tritonserver": 4, "model": 4, "redis": 2, "load": 2},
    "together": {"servers": 1, "load": 1},
}
"""Cores of each process. Together, no request waits for another core to wake up."""


def cores_of(layout: str) -> dict[str, set[int]] | None:
    """Which cores of this process's each role has in a layout; None where there are too few."""
    shares = LAYOUTS[layout]
    cores = iter(sorted(os.sched_getaffinity(0)))
    if len(os.sched_getaffinity(0)) < sum(shares.values()):
        return None
    return {role: {next(cores) for _ in range(count)} for role, count in shares.items()}


@contextmanager
def pinned(
    places: dict[str, set[int]], processes: Iterator[tuple[str, psutil.Process]]
) -> Iterator[None]:
    """Keep processes, given with their roles, and the load that this one starts, to their cores."""
    every, moved = os.sched_getaffinity(0), list(processes)
    for role, process in moved:
        _move(process, places.get(role, places.get("servers", every)))
    os.sched_setaffinity(0, places["load"])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)
        for _, process in moved:
            _move(process, every)


def _move(process: psutil.Process, cores: set[int]) -> None:
    ended = FileNotFoundError, ProcessLookupError
    with suppress(*ended):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(*ended):
                os.sched_setaffinity(int(thread.name), cores)
