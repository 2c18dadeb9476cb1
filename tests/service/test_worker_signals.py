"""Signals to a supervisor at its worst moments: as a worker starts, and as one ends."""

import subprocess
import sys

from tests.conftest import ROOT

STARTING = """
import os, signal
from service.settings import ModelSettings, Settings
from service.workers import supervise

def serve(*given):
    while True:
        signal.pause()

os.register_at_fork(after_in_child=lambda: os.kill(os.getppid(), signal.SIGTERM))
models = {"home": ModelSettings(package="unused")}
supervise(Settings(models=models, port=0, workers=3), None, serve)
"""


def test_a_signal_ends_a_worker_that_is_just_starting() -> None:
    """Whoever has SIGTERM first, the supervisor or the worker, both end."""
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", STARTING], cwd=ROOT, timeout=30, check=False)
        assert done.returncode == 0


ENDING = """
import os, signal
from service.settings import ModelSettings, Settings
from service.workers import supervise

supervisor, wait = os.getpid(), os.waitpid

def waitpid(*given):
    ended = wait(*given)
    if ended[0] and os.getpid() == supervisor:
        os.kill(supervisor, signal.SIGTERM)
    return ended

os.waitpid = waitpid
models = {"home": ModelSettings(package="unused")}
supervise(Settings(models=models, port=0, workers=1), None, lambda *given: None)
"""


def test_a_signal_that_comes_as_a_worker_has_ended_ends_the_service() -> None:
    """Between the kernel's word that it has, and our knowing."""
    done = subprocess.run([sys.executable, "-c", ENDING], cwd=ROOT, timeout=30, check=False)
    assert done.returncode == 0
