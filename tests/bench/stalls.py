"""How long event loops that were ready to run waited for a core, as the kernel counts it.

`python -m tests.bench.stalls PID` watches all threads of PID and the first of each descendant until
it is killed, and writes "from to waited" (seconds on the monotonic clock) for each wait of
SHORTEST_S or more. A process of its own: it holds up none of those that it watches.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic, sleep

EVERY_S, LOOK_S = 0.005, 0.25
"""Between two looks at the counters, and at who is there."""

SHORTEST_S = 0.001


@dataclass(frozen=True)
class Stall:
    """A thread waited `waited_s` for a core within this time."""

    start: float
    end: float
    waited_s: float


def waited_in(stalls: list[Stall], start: float, end: float) -> float:
    """Seconds that threads waited between two moments, those of all added: one waits for another,
    as a reply for the gateway after it has waited for Redis."""
    return sum(
        max(0.0, min(stall.waited_s, min(end, stall.end) - max(start, stall.start)))
        for stall in stalls
    )


@contextmanager
def watched() -> Iterator[list[Stall]]:
    """The stalls of this process and its descendants in the block; there once it has ended."""
    stalls: list[Stall] = []
    with TemporaryFile("w+") as file:
        command = [sys.executable, "-m", "tests.bench.stalls", str(os.getpid())]
        process = subprocess.Popen(command, stdout=file)
        try:
            yield stalls
        finally:
            process.terminate()
            process.wait()
            file.seek(0)
            rows = [line.split() for line in file if line.endswith("\n")]
            stalls += [Stall(*map(float, row)) for row in rows]


def counters(pid: int, only_first: bool = False) -> Iterator[Path]:
    """Of the threads of a process, and of the first thread of each descendant but this process."""
    if pid == os.getpid():
        return
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if task.name == str(pid) or not only_first:
                yield task / "schedstat"
            for child in (task / "children").read_text().split():
                yield from counters(int(child), only_first=True)
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended


def watch(pid: int) -> None:
    """Write what is seen, for ever."""
    seen: dict[Path, tuple[float, float]] = {}
    look = 0.0
    watched: list[Path] = []
    while True:
        if monotonic() >= look:
            watched, look = list(counters(pid)), monotonic() + LOOK_S
        for counter in watched:
            try:
                _, waited_ns, _ = counter.read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            now, waited_s = monotonic(), int(waited_ns) / 1e9
            before, waited_before_s = seen.get(counter, (now, waited_s))
            seen[counter] = now, waited_s
            if (wait_s := waited_s - waited_before_s) >= SHORTEST_S:
                # It is counted when it ends; it may have begun before the last look.
                print(min(before, now - wait_s), now, wait_s, flush=True)  # noqa: T201
        sleep(EVERY_S)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
