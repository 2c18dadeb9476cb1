"""Which seconds of a measurement a virtual machine had its cores in: the kernel counts what the
host took from it ("steal" in /proc/stat), which no program in it can see or help. Beside it, what a
process waited for a core that others had."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import numpy as np
from numpy.typing import NDArray

EVERY_S = 0.1
"""Between two looks at the counter."""

TICK_S = 0.01
"""What /proc/stat counts in."""

MOST_S = 0.02
"""Taken within a second, of all cores together, above which it was not ours. A quiet host takes
one tick in most seconds."""

Look = tuple[float, float, float]
"""Seconds on the monotonic clock; until then, seconds taken and seconds the process waited."""


@contextmanager
def looking(pid: int) -> Iterator[list[Look]]:
    """Looks at the counters, the process's among them, during the block, in order."""
    looks, ended = [_look(pid)], Event()

    def look() -> None:
        while not ended.wait(EVERY_S):
            looks.append(_look(pid))

    thread = Thread(target=look)
    thread.start()
    try:
        yield looks
    finally:
        ended.set()
        thread.join()
        looks.append(_look(pid))


def taken(looks: list[Look], start: float, seconds: float) -> NDArray[np.float64]:
    """[N] seconds taken within each whole second after `start`, N = floor(seconds)."""
    at, total, _ = np.array(looks).T
    edges = np.interp(start + np.arange(int(seconds) + 1), at, total)
    return np.diff(edges)


def waited(looks: list[Look], start: float, seconds: float) -> NDArray[np.float64]:
    """[N] the most seconds that the process waited between two looks, in each whole second after
    `start`, N = floor(seconds)."""
    at, _, total = np.array(looks).T
    second = np.floor(at[1:] - start)
    return np.array(
        [np.diff(total)[second == n].max(initial=0.0) for n in range(int(seconds))], np.float64
    )


def _look(pid: int) -> Look:
    whole = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    _, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return monotonic(), TICK_S * int(whole[8]), int(waited_ns) / 1e9
