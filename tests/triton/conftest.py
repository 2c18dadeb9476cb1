"""A real Triton server over a repository that tests add models to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_build.runtime.package import ModelPackage, open_package
from tests.engine_build.conftest import (  # noqa: F401 - fixtures used here
    checkpoint,
    checkpoint_dir,
    package_dir,
)
from tests.service.conftest import redis_url  # noqa: F401 - the same
from tests.triton.install import Unavailable, install
from tests.triton.packages import add
from tests.triton.server import TritonServer


@pytest.fixture(scope="session")
def triton_home() -> Path:
    """An installed server; tests that need it skip loudly where there can be none."""
    try:
        return install()
    except Unavailable as reason:
        pytest.skip(f"NOT CHECKED: no Triton server here: {reason}")


@pytest.fixture(scope="session")
def package(package_dir: Path) -> ModelPackage:  # noqa: F811 - the fixture
    """The package that the repository's engine is of."""
    return open_package(package_dir)


@pytest.fixture(scope="session")
def repository(
    package_dir: Path,  # noqa: F811 - the fixture
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model repository with the package's engine."""
    directory = tmp_path_factory.mktemp("triton") / "repository"
    directory.mkdir()
    add(directory, package_dir)
    return directory


@pytest.fixture(scope="session")
def triton(triton_home: Path, repository: Path) -> Iterator[TritonServer]:
    """A server for the tests that do not end it; nothing is loaded until a gateway asks."""
    with TritonServer(triton_home, repository) as server:
        yield server


@pytest.fixture
def own_triton(triton_home: Path, repository: Path) -> Iterator[TritonServer]:
    """A server that a test may stop, kill and start again."""
    server = TritonServer(triton_home, repository)
    with contextlib.closing(server):
        server.start()
        yield server
