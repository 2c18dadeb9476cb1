"""Dockerfile and compose.yaml: linted, naming what exists, and the gateway's image for real."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from time import monotonic, sleep

import click
import compose_spec
import httpx
import pytest
import yaml

from engine_build.triton.repository import SERVER_FLAGS
from mtgr import COMMANDS, main
from service.demo import PACKAGE
from service.settings import PREFIX, ModelSettings, Settings
from service.traffic import LiveTraffic
from tests.conftest import ROOT
from tests.deploy.dockerfile import copies, stages

STAGES = stages()
OURS = ("gateway", "triton", "engine-builder")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
PATIENCE_S = 60.0


def test_dockerfile_passes_hadolint() -> None:
    """Every rule, no exception."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_images_copy_only_what_exists() -> None:
    """Sources lie in the repository and reach the build, or come from an earlier stage."""
    sent = (ROOT / ".dockerignore").read_text().split()
    earlier: set[str] = set()
    for stage in STAGES.values():
        for origin, sources, _ in copies(stage):
            if origin:
                assert origin in earlier, f"{stage.name}: no stage {origin} before it"
            for source in [] if origin else sources:
                assert (ROOT / source).exists(), f"{stage.name}: {source}"
                assert f"!{source.removeprefix('./')}" in sent, f"{source} is left out by ignore"
        earlier.add(stage.name)


def test_bases_and_packages_are_pinned() -> None:
    """By version: an image and what pip installs; extras are those of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for stage in STAGES.values():
        assert re.search(r":\d", stage.base), stage.base
        for name, value in stage.steps:
            for words in re.findall(r"pip install ([^&|]+)", value) if name == "RUN" else []:
                for word in [w.strip('"') for w in words.split() if not w.startswith("-")]:
                    extra = re.fullmatch(r"\.(?:\[(\w+)\])?", word)
                    assert "==" in word or extra, f"{stage.name}: {word}"
                    assert not extra or not extra[1] or extra[1] in extras, word
    services = COMPOSE["services"].values()
    foreign = [s["image"] for s in services if not s["image"].startswith("mtgr/")]
    assert all(re.search(r":v?\d+\.\d+", image) for image in foreign), foreign


@pytest.mark.parametrize("name", OURS)
def test_images_run_as_nobody_in_particular(name: str) -> None:
    """A number, so that Kubernetes can check it; labels; an SBOM; exec form gets SIGTERM."""
    stage = STAGES[name]
    user = stage.value("USER").split(":")
    assert all(part.isdigit() and int(part) > 0 for part in user)
    assert "org.opencontainers.image.version" in stage.value("LABEL")
    assert stage.exec_form("ENTRYPOINT")
    assert stage.exec_form("CMD")
    makes = STAGES["gateway-build"] if name == "gateway" else stage
    assert "--output-file /opt/mtgr/sbom.cdx.json" in str(makes.steps)


def test_entry_points_and_commands_exist() -> None:
    """Each `mtgr ...` of the images and of compose.yaml is a command, with flags that it has."""
    assert STAGES["gateway"].exec_form("ENTRYPOINT") == ["/opt/mtgr/bin/mtgr"]
    lines = [STAGES["gateway"].exec_form("CMD"), STAGES["engine-builder"].exec_form("CMD")]
    lines += [STAGES["gateway"].exec_form("HEALTHCHECK")[1:]]
    for service in COMPOSE["services"].values():
        command = service.get("command", [])
        if service.get("entrypoint"):
            script = command[0].replace("$$", "$")
            lines += [m.split() for m in re.findall(r"\bmtgr (\w.*)", script)]
        elif service["image"] == "mtgr/gateway":
            lines.append(command)
    assert len(lines) >= 6
    for command, *arguments in lines:
        assert command in COMMANDS
        flags = {word for word in arguments if word.startswith("--")} - {"--help"}
        found = main.get_command(click.Context(main), command)
        assert found is not None
        assert flags <= {flag for parameter in found.params for flag in parameter.opts}


def test_triton_starts_as_by_our_launch_command() -> None:
    """With every flag that no server of ours is without."""
    assert {*SERVER_FLAGS} <= {*STAGES["triton"].exec_form("ENTRYPOINT")}


def test_plugins_are_targets_of_the_build() -> None:
    """What the builder compiles and the others copy is made by our CMakeLists.txt."""
    text = (ROOT / "plugins" / "CMakeLists.txt").read_text()
    (build,) = [v for n, v in STAGES["plugins"].steps if n == "RUN" and "--build" in v]
    targets = re.search(r"--target (\w+) (\w+)", build)
    assert targets
    for target in targets.groups():
        assert f"add_library({target} SHARED" in text
        assert f"/src/build/plugins/lib{target}.so" in str(STAGES["triton"].steps)


def test_compose_is_valid_and_starts_what_was_promised() -> None:
    """By the Compose specification's own types; the file mounts exist; settings are real."""
    compose_spec.ComposeSpecification.model_validate(COMPOSE)
    services = COMPOSE["services"]
    assert {"redis", "triton", "gateway", "prometheus", "grafana", "load"} <= set(services)
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            exists = (ROOT / source).exists() if source.startswith("./") else True
            assert exists or source in COMPOSE["volumes"], f"{name}: {source}"
        for variable, value in service.get("environment", {}).items():
            if variable.startswith(PREFIX):
                assert variable in known, f"{name}: {variable}"
            if variable == f"{PREFIX}MODELS":
                for model in json.loads(value).values():
                    ModelSettings.model_validate(model)
        if "build" in service:
            assert service["build"]["target"] in STAGES
        for other in service.get("depends_on", {}):
            theirs = services[other].get("profiles", ["cpu", "gpu"])
            assert set(service.get("profiles", [])) <= set(theirs)
    for config in COMPOSE["configs"].values():
        assert yaml.safe_load(config["content"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway image's file set, by the Dockerfile's own steps, below a directory."""
    root = tmp_path_factory.mktemp("image")

    def below(text: str) -> str:
        return re.sub(r"(?<![\w.])/(opt|src)\b", f"{root}/\\1", text)

    build = STAGES["gateway-build"]
    work = root
    for name, value in build.steps:
        if name == "WORKDIR":
            work = Path(below(value))
            work.mkdir(parents=True)
        elif name == "COPY":
            *sources, target = value.split()
            for source in sources:
                place = work / target
                if (ROOT / source).is_dir():
                    ignore = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, place, ignore=ignore)
                else:
                    shutil.copy(ROOT / source, place)
        elif name == "RUN":
            script = below(value).replace("python -m venv", f"{sys.executable} -m venv")
            fast = {**os.environ, "PIP_NO_COMPILE": "1"}
            done = subprocess.run(
                ["sh", "-ec", script], cwd=work, env=fast, capture_output=True, text=True
            )
            if "No matching distribution" in done.stderr or "Connection" in done.stderr:
                pytest.skip(f"NOT CHECKED: no package registry: {done.stderr[-300:]}")
            assert done.returncode == 0, done.stderr
        else:
            raise AssertionError(f"this test does not know {name}")
    shutil.rmtree(root / "src")  # the second stage copies /opt/mtgr alone
    shutil.rmtree(root / "opt" / "sbom")
    return root


@pytest.fixture
def environment(image: Path, tmp_path: Path) -> dict[str, str]:
    """The image's own, in a working directory of its own."""
    variables = STAGES["gateway"].environment()
    path = variables["PATH"].replace("/opt/mtgr", f"{image}/opt/mtgr")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return {**variables, "PATH": path, "MTGR_PORT": str(port), "HOME": str(tmp_path)}


def test_image_without_a_package_says_so_in_one_line(
    image: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """And exits, with the path that it wants."""
    command = [f"{image}/opt/mtgr/bin/mtgr", *STAGES["gateway"].exec_form("CMD")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "/packages/home" in done.stderr


def test_image_starts_ranks_and_ends_without_torch(
    image: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Its entry point serves a package, is healthy, ranks, and ends on SIGTERM with status 0."""
    absent = "import importlib.util as u; print([u.find_spec(m) for m in ('torch', 'onnx')])"
    python = f"{image}/opt/mtgr/bin/python"
    shown = subprocess.run([python, "-c", absent], env=environment, capture_output=True, text=True)
    assert shown.stdout.strip() == "[None, None]"
    sbom = json.loads((image / "opt" / "mtgr" / "sbom.cdx.json").read_text())
    parts = {part["name"] for part in sbom["components"]}
    assert {"mtgr-serving", "onnxruntime", "fastapi"} <= parts

    models = json.dumps({"home": {"package": str(PACKAGE)}})
    variables = {**environment, "MTGR_MODELS": models}
    entry = f"{image}/opt/mtgr/bin/mtgr"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [entry, "serve"], env=variables, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        health = [f"{image}{STAGES['gateway'].exec_form('HEALTHCHECK')[0]}", "health"]
        until = monotonic() + PATIENCE_S
        while subprocess.run(health, env=variables, capture_output=True, check=False).returncode:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert monotonic() < until, "never healthy"
            sleep(0.2)
        url = f"http://127.0.0.1:{variables['MTGR_PORT']}"
        _, body = LiveTraffic(url, candidates=20).ask()
        answer = httpx.post(f"{url}/v1/rank", json=body | {"deadline_ms": 20_000}).json()
        assert answer["ranked_by"] == "model"
        assert len(answer["items"]) == 10
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_S) == os.EX_OK
