"""Idle cores kept from going to sleep: on each a loop that gives way to all other work, or the
kernel's own.

With `sched_autogroup_enabled` a process gives way within its session alone: to a server that was
started in another one a loop would be half of the work there is. So each has a session of its own,
which gives way to all others. A loop waits with PAUSE, as the kernel's own does: of two threads of
one core the other may be at work.
"""

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

SPINNER = "stay-awake"
"""Name of the processes."""

LOOP = "int main(void) { for (;;) __builtin_ia32_pause(); }"

SESSION = Path("/proc/self/autogroup")
"""Takes how much one's session gives way, as `nice` does."""

QUALITY = Path("/dev/cpu_dma_latency")
"""Who holds it open says within how many microseconds a core must be awake."""


@contextmanager
def idle_polls() -> Iterator[bool]:
    """The kernel waits in a loop for work; gives whether it may be told to, which takes root."""
    try:
        device = QUALITY.open("wb", buffering=0)
    except OSError:
        yield False
        return
    with device:
        device.write(struct.pack("i", 0))
        yield True


@contextmanager
def cores_awake() -> Iterator[None]:
    """A loop of the lowest priority (SCHED_IDLE) on every core that this process may use."""

    def on(core: int) -> None:
        os.sched_setaffinity(0, {core})
        if SESSION.exists():
            SESSION.write_text("19")
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    with TemporaryDirectory() as directory:
        program = str(Path(directory, SPINNER))
        subprocess.run(["cc", "-x", "c", "-", "-o", program], input=LOOP.encode(), check=True)
        loops = [
            subprocess.Popen([program], preexec_fn=partial(on, core), start_new_session=True)
            for core in sorted(os.sched_getaffinity(0))
        ]
        try:
            yield
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
