"""`service.backends.threads`: calls that may never return."""

import subprocess
import sys
from concurrent.futures import CancelledError
from threading import Event

import pytest

from service.backends.threads import Threads

FROZEN = """
from threading import Event
from service.backends.threads import Threads

threads = Threads(1, "engine")
threads.start()
begun = Event()
threads.submit(lambda: begun.set() or Event().wait())
begun.wait()
assert not threads.close(0.05)
"""


def test_a_call_gives_its_result_or_its_error() -> None:
    """And the thread goes on with the next."""
    threads = Threads(1, "test")
    threads.start()
    failed, done = threads.submit(lambda: 1 / 0), threads.submit(lambda: 7)
    with pytest.raises(ZeroDivisionError):
        failed.result(5)
    assert done.result(5) == 7
    assert threads.close(5)


def test_closing_drops_what_waits_and_lets_what_runs_finish() -> None:
    """A frozen call is given up, and ends once it can."""
    threads, thawed, begun = Threads(1, "test"), Event(), Event()
    threads.start()
    running = threads.submit(lambda: begun.set() or thawed.wait(30))
    waiting = threads.submit(lambda: None)
    assert begun.wait(5)
    assert not threads.close(0.05)
    with pytest.raises(CancelledError):
        waiting.result(0)
    thawed.set()
    assert running.result(5)
    assert threads.close(5)


def test_a_process_ends_though_a_call_does_not() -> None:
    """SIGTERM would be in vain otherwise, and the embedded Redis never be stopped."""
    subprocess.run([sys.executable, "-c", FROZEN], check=True, timeout=30)
