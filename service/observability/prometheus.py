"""A Prometheus server of our own that scrapes gateways by our rules."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import yaml

from service.errors import BadSetting
from service.observability.rules import rules

SCRAPE_S = 2
"""For watching by eye; a real deployment scrapes each 15 s."""

START_S, LOOK_EVERY_S = 30.0, 0.1
"""Longest wait for it to answer, and between two looks, seconds."""


def configuration(targets: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """prometheus.yml for `targets`: "host:port"s by job."""
    every = f"{SCRAPE_S}s"
    jobs = [
        {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
        for job, addresses in targets.items()
    ]
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": ["rules.yaml"],
        "scrape_configs": jobs,
    }


@contextmanager
def running(
    directory: Path, port: int, targets: Mapping[str, Sequence[str]], program: str = "prometheus"
) -> Iterator[str]:
    """URL of a server that keeps its data in `directory` while the block runs.

    Raises BadSetting where there is no Prometheus, or it does not start.
    """
    path = shutil.which(program)
    if path is None:
        raise BadSetting("no 'prometheus' on the PATH; 'make dashboards' brings one")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules()))
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration(targets)))
    url = f"http://127.0.0.1:{port}"
    command = [
        path,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = directory / "prometheus.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as done:
        try:
            until = monotonic() + START_S
            while not _answers(f"{url}/-/ready"):
                if done.poll() is not None or monotonic() > until:
                    raise BadSetting(f"Prometheus does not start: {log.read_text()[-1000:]}")
                sleep(LOOK_EVERY_S)
            yield url
        finally:
            done.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
