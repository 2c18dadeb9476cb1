"""Room for every connection among this process's open files, before the first caller comes."""

import fcntl
import logging
import os
import resource
from pathlib import Path

log = logging.getLogger("mtgr")

OTHERS = 1024
"""Open files beside callers' connections: those to Redis and to engine servers, logs, libraries."""


def make_room(connections: int) -> None:
    """Have the limit of open files, and the kernel's table of them, be large enough for so many.

    The table doubles as files are opened, and where a process has threads the one that opens a file
    then waits until no core can be reading the old table any more (Linux, expand_fdtable): 7 to 27
    ms in which the event loop stood still in an accept. It never shrinks.
    """
    wanted = connections + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # Linux lets neither be infinite
    count = min(wanted, hard)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    if count < wanted:
        log.warning(
            "%d open files are allowed (ulimit -Hn), for %d connections %d are wanted",
            count,
            connections,
            wanted,
        )
    with Path(os.devnull).open() as file:
        os.close(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, count - 1))
