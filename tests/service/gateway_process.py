"""A gateway in a process of its own, to be signalled and killed: `REDIS_DIR PORT [SETTINGS]`.

A worker whose `hold` is there loads its engine once that is gone.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from socket import create_server
from time import sleep
from typing import Any

import httpx

from model_def.config import PackageConfig
from service.backends.inprocess import InProcessBackend
from service.serve import run
from service.setting_sources import load_settings
from service.settings import ModelSettings, Settings
from tests.service.world import SCHEMA, Arithmetic, opener

ROOT = Path(__file__).parents[2]


@contextmanager
def gateway_process(
    directory: Path,
    settings_file: Path | None = None,
    while_loading: Callable[[httpx.Client], None] = lambda client: None,
    limit_files: tuple[int, int] | None = None,
) -> Iterator[tuple[httpx.Client, "subprocess.Popen[bytes]"]]:
    """A gateway process with an embedded server on `directory`, once it is ready; `limit_files` are
    its soft and hard limits of open files at the start."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = [] if settings_file is None else [str(settings_file)]
    command = [sys.executable, "-m", __name__, str(directory), str(port), *more]
    if limit_files is not None:
        command = ["prlimit", "--nofile={}:{}".format(*limit_files), *command]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while_loading(client)
            while not ready(client):
                assert process.poll() is None
            yield client, process
    finally:
        process.terminate()
        process.wait()


def ready(client: httpx.Client) -> bool:
    """Whether the gateway says that it is."""
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def hold(directory: Path, slot: int) -> Path:
    """What keeps a worker from loading its engine."""
    return directory / f"worker-{slot}.hold"


def process_id(directory: Path, slot: int) -> int:
    """Of a worker, once it has begun."""
    file = directory / f"worker-{slot}.pid"
    while not (file.exists() and file.read_text()):
        sleep(0.01)
    return int(file.read_text())


def loaded(directory: Path, slot: int) -> Path:
    """What a worker leaves that has loaded its engine."""
    return directory / f"worker-{slot}.loaded"


def opened(directory: Path, settings: ModelSettings) -> tuple[PackageConfig, InProcessBackend]:
    """The usual package, loaded when its worker may."""
    config, _ = opener(SCHEMA)(settings)
    name = current_process().name
    (directory / f"{name}.pid").write_text(str(os.getpid()))

    def load() -> Arithmetic:
        while (directory / f"{name}.hold").exists():
            sleep(0.01)
        (directory / f"{name}.loaded").touch()
        return Arithmetic()

    return config, InProcessBackend(load, workers=settings.workers, queue=settings.queue)


if __name__ == "__main__":
    flags: dict[str, Any] = dict(
        zip(("redis_dir", "port", "settings_file"), sys.argv[1:], strict=False)
    )
    flags["models"] = {"home": {"package": "unused"}}
    read = partial(load_settings, flags, Settings)
    run(read(), read, partial(opened, Path(flags["redis_dir"])))
