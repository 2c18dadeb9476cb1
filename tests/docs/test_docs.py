"""The documentation: its commands run, its picture is of the code, its links lead somewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mtgr import COMMANDS
from tests.conftest import ROOT
from tests.deploy.dockerfile import stages as images
from tests.docs.request_path import CAPTIONS, PICTURE, picture, stages
from tests.observability.conftest import UNPACKED

DOCS = ROOT / "docs"
PAGES = ("quick-start", "concepts", "http-api", "operating", "models", "internals")
"""In the order of docs/README.md."""

LIMIT_S = 300
"""For all commands together."""

BLOCK = re.compile(r"^ *```(console|sh)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, kind: str) -> list[str]:
    """Bodies of the fenced blocks of a kind."""
    return [body for name, body in BLOCK.findall(page.read_text()) if name == kind]


def commands(page: Path) -> list[str]:
    """A command begins with `$ ` and goes on until the next, or the block's end."""
    return [
        command.strip()
        for body in blocks(page, "console")
        for command in re.split(r"^ *\$ ", body, flags=re.MULTILINE)[1:]
    ]


def script() -> str:
    """Every page's commands in order, each announced; the first that fails ends it."""
    lines = ["set -eo pipefail", "trap 'make demo-stop > /dev/null' EXIT"]
    for name in PAGES:
        for number, command in enumerate(commands(DOCS / f"{name}.md"), 1):
            lines += [f"echo '=== {name} {number}' >&2", command]
    return "\n".join(lines)


def clone(directory: Path) -> Path:
    """What a newcomer has after cloning and installing: links to this checkout and its programs."""
    for path in ROOT.iterdir():
        if path.name not in {".venv", "var", ".git"}:
            (directory / path.name).symlink_to(path)
    installed = directory / ".venv"
    installed.mkdir()
    (installed / "bin").symlink_to(Path(sys.executable).parent)
    for stamp in (".base", ".observe", ".dev"):
        (installed / stamp).touch()
    return directory


def test_commands_of_the_documentation_run(tmp_path: Path) -> None:
    """All of them, in order, in a clone, on a network of their own, against a live service."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-n", "true"], check=False).returncode:
        pytest.skip("NOT CHECKED: no network namespace for the documentation's ports")
    if not (UNPACKED.exists() or shutil.which("prometheus")):
        pytest.skip("NOT CHECKED: no Prometheus; run 'make build/prometheus'")
    (tmp_path / "clone").mkdir()
    command = f"ip link set lo up\n{script()}"
    done = subprocess.run(
        [unshare, "-n", "timeout", "--kill-after=10", str(LIMIT_S), "bash", "-c", command],
        cwd=clone(tmp_path / "clone"),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.rpartition("=== ")[2]
    assert done.returncode == 0, f"{last}\n{done.stdout[-2000:]}"
    for shown in ('"status":"ready"', "ranked by model", '"degraded":false', "Server-Timing",
                  '"appended":1', '"type":"wrong_type"', "mtgr_requests_total", "onnx-cpu: passed",
                  "SUCCESS: ", "served: p50", "mtgr-overview", '"status":"success"'):  # fmt: skip
        assert shown.lower() in done.stdout.lower(), shown


def environment() -> dict[str, str]:
    """Of a shell in which the project's tools are found."""
    path = f"{Path(sys.executable).parent}:{UNPACKED}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": "/tmp", "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_pages_name_only_what_exists(page: Path) -> None:
    """Relative links, files of the chart, targets of the Dockerfile, commands of `mtgr`."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for command in re.findall(r"\bmtgr ([a-z-]+)\b(?!:)", " ".join(re.findall(r"`([^`]+)`", text))):
        assert command in COMMANDS, command
    for body in blocks(page, "sh"):
        for path in re.findall(r"helm/[\w./-]+", body):
            assert (ROOT / path).exists(), path
        for name in re.findall(r"--target (\S+)", body):
            assert name in images(), name
        for profile in re.findall(r"COMPOSE_PROFILES=(\w+)", body):
            services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"].values()
            assert profile in {p for service in services for p in service.get("profiles", [])}


def test_picture_of_a_request_is_of_the_code() -> None:
    """Made from the stages that the code marks; each has its words."""
    good, failed = stages()
    assert set(good) | set(failed) == set(CAPTIONS)
    assert good[0] == "read"
    assert good[-1] == "encode"
    assert PICTURE.read_text() == picture(), "docs/request-path.svg: run 'make observability'"
