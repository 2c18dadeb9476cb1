"""A real tritonserver for the tests, from the package registry, with its Python backend.

NVIDIA's `nvidia-pytriton` wheel carries the server (55 MB); nothing of its Python is installed.
The server's Python backend starts this interpreter's environment, so models run with the very
packages that the tests run with. Run as a module to install ahead of the tests.
"""

import fcntl
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from tests.conftest import ROOT

WHEEL = "nvidia-pytriton==0.7.0"
"""tritonserver 2.51."""

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"
HOME = ROOT / "build" / f"triton-python{PYTHON}"


class Unavailable(Exception):
    """Why there can be no Triton server on this machine."""


def install(home: Path = HOME) -> Path:
    """The folder with `bin/tritonserver` and `backends/`, installed on first use.

    Raises Unavailable.
    """
    home.mkdir(parents=True, exist_ok=True)
    server = home / "pytriton" / "tritonserver"
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not server.is_dir():
            _unpack(home)
    stub = server / "backends" / "python" / STUB
    if not stub.is_file():
        raise Unavailable(f"{WHEEL} has no Python backend for Python {PYTHON}")
    linked = subprocess.run(
        ["ldd", stub], env={"LD_LIBRARY_PATH": library_path()}, capture_output=True, text=True
    ).stdout
    if missing := [line.split()[0] for line in linked.splitlines() if "not found" in line]:
        raise Unavailable(f"the Python backend needs {missing}: install this Python's library")
    return server


def library_path() -> str:
    """Where this interpreter's shared library would be."""
    return str(sysconfig.get_config_var("LIBDIR"))


def _unpack(home: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", home, WHEEL], capture_output=True, text=True, check=False
    )
    wheels = list(home.glob("nvidia_pytriton-*.whl"))
    if done.returncode or not wheels:
        raise Unavailable(f"pip download {WHEEL}: {done.stderr.strip().splitlines()[-1:]}")
    partial = home / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheels[0]) as wheel:
        for member in wheel.infolist():
            if member.filename.startswith(("pytriton/tritonserver/", "nvidia_pytriton.libs/")):
                path = Path(wheel.extract(member, partial))
                path.chmod((member.external_attr >> 16) & 0o777 or 0o755)
    wheels[0].unlink()
    unpacked = partial / "pytriton" / "tritonserver"
    stub = unpacked / "python_backend_stubs" / PYTHON / STUB
    if stub.is_file():
        stub.rename(unpacked / "backends" / "python" / STUB)
    for folder in ("nvidia_pytriton.libs", "pytriton"):  # the one that says "installed" last
        (partial / folder).rename(home / folder)
    shutil.rmtree(partial)


if __name__ == "__main__":
    print(install())  # noqa: T201 - a command's answer
