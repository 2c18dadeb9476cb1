"""`mtgr loop`: serve, log, join, train, build, promote, serve better; several rounds of it.

Every part is the real one, each in a process of its own: the gateway with its Redis server, HTTP,
and the commands that an engineer would run. Only the people are simulated, so how far each ranking
is from the best one is known.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_server
from time import monotonic, sleep
from typing import Any

import click
import httpx
import numpy as np

from model_def.data.past import Past
from model_def.data.simulator import DAY_MS, SCHEMA, Marketplace
from model_def.data.traffic import SCENE, Traffic, latest_snapshot
from service.demo import LOOK_EVERY_S, PATIENCE_S, await_ready, launch
from service.simulated import Crowd, Tally

WRITTEN = re.compile(r'mtgr_request_log_total\{outcome="written"\} ([0-9.e+]+)')
START_MS = latest_snapshot(1_736_150_400_000)
"""A Monday of 2025: the same days, and so the same traffic, whenever it runs."""

LIMITS = {
    "max-gauc-loss": 0.02,
    "max-ne-rise": 0.05,
    "max-miscalibration": 0.5,
    "max-psi": 100,
    "max-latency-ratio": 3,
    "min-requests": 10,
}
"""The gate's, for a town whose day is a few hundred requests: its metrics move by as much by
chance. Of drift it cannot judge: what follows a model that knew nothing scores otherwise."""

TRAINING = {"embedding-std": 0.1}
"""Narrow: with so few clicks, wide embeddings start as noise that is not unlearnt."""

LOG_FILE_S = 1.0
"""How long the gateway waits for a log file to fill: rounds are short."""


@dataclass(frozen=True)
class Scale:
    """How much of everything; the defaults take some five minutes on two cores."""

    rounds: int
    users: int
    items: int
    days: int
    candidates: int
    top_k: int
    explore: int
    epochs: int
    seed: int


@dataclass(frozen=True)
class Row:
    """One line of the table: what served a round, how well, and what became of its successor."""

    served_by: str
    tally: Tally
    replayed: str
    verdict: str
    seconds: float


class Loop:
    """The directories of one run, and its rounds."""

    def __init__(self, root: Path, scale: Scale):
        self.root, self.scale = root, scale
        self.live = root / "live"
        self.log = root / "commands.log"

    def run(self) -> list[Row]:
        """Every round, served by what the one before it promoted."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        self._cold_start()
        scale, rows = self.scale, []
        past = Past(Marketplace(scale.users, scale.items, scale.seed), START_MS, scale.seed)
        traffic = Traffic(past, scale.seed)
        with self._gateway() as client:
            rng = np.random.default_rng(scale.seed)
            crowd = Crowd(client, traffic, scale.candidates, scale.top_k, scale.explore, rng)
            requests = 0
            for number in range(scale.rounds + 1):
                started, crowd.tally = monotonic(), Tally()
                version = served_version(client)
                newest_ms = self._serve(crowd, number)
                requests += crowd.tally.requests
                replayed, verdict = "-", "-"
                if number < scale.rounds:
                    self._await_log(client, requests)
                    replayed, verdict = self._learn(client, number + 1, newest_ms)
                rows.append(Row(version, crowd.tally, replayed, verdict, monotonic() - started))
                click.echo(line(number, rows[-1]))
        return rows

    def _cold_start(self) -> None:
        """A package that has seen one day of a few people in another town, once."""
        logs, checkpoint = self.root / "elsewhere", self.root / "cold.checkpoint"
        few = ["--days", "1", "--users", "20", "--items", "100", "--seed", str(self.scale.seed + 1)]
        self._mtgr("simulate", logs, *few)
        self._mtgr("train", logs, checkpoint, "--epochs", "1", "--version", "cold")
        self._mtgr("build", checkpoint, self.root / "cold")
        self.live.symlink_to((self.root / "cold").resolve())

    def _serve(self, crowd: Crowd, number: int) -> int:
        """The days of a round; the morning of the last one, ms."""
        past, day_ms = crowd.traffic.past, 0
        for day in range(number * self.scale.days, (number + 1) * self.scale.days):
            day_ms = START_MS + day * DAY_MS
            if day:
                past.snapshot(day_ms)
            crowd.day(day_ms)
        return day_ms

    def _learn(self, client: httpx.Client, number: int, newest_ms: int) -> tuple[str, str]:
        """Join, train on all days but the newest, build, promote on that; how the served scores
        came out again, and the verdict."""
        logs, checkpoint = self.root / "logs", self.root / f"round-{number}.checkpoint"
        package = self.root / f"round-{number}"
        redis = f"unix://{(self.root / 'redis' / 'valkey.sock').resolve()}"
        self._mtgr("labels", self.root / "labels", "--redis-url", redis)
        joined = [self.root / part / SCHEMA.name for part in ("requests", "labels")]
        self._mtgr("join", *joined, logs, "--now-ms", str(newest_ms + 4 * DAY_MS))
        until = np.datetime64(newest_ms // DAY_MS * DAY_MS, "ms").astype("datetime64[s]")
        how = flags({"until": until, "epochs": self.scale.epochs, **TRAINING})
        self._mtgr("train", logs, checkpoint, "--version", package.name, *how)
        self._mtgr("build", checkpoint, package)
        promoted = self._mtgr("promote", package, self.live, logs, *flags(LIMITS), check=False)
        report = json.loads(package.with_name(f"{package.name}.promotion.json").read_text())
        if promoted:
            await_version(client, package.name)
        verdict = "promoted" if promoted else f"refused: {'; '.join(report['reasons'])}"
        return differences(report["replay"]), verdict

    def _mtgr(self, command: str, *arguments: Any, check: bool = True) -> bool:
        """Run one command; whether it succeeded. Raises ClickException with its words if not."""
        words = [sys.executable, "-m", "mtgr", command, *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        with self.log.open("a") as log:
            log.write(f"$ mtgr {' '.join(words[3:])}\n{done.stdout}{done.stderr}\n")
        if done.returncode and check:
            raise click.ClickException(
                f"mtgr {command} failed; see {self.log}\n{done.stderr[-2000:]}"
            )
        return not done.returncode

    @contextmanager
    def _gateway(self) -> Iterator[httpx.Client]:
        """A gateway with its own Redis server and a request log, following the link."""
        with create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = {
            "models": json.dumps({SCENE: {"package": str(self.live)}}),
            "port": port,
            "redis-dir": self.root / "redis",
            "redis-timeout-ms": 2000,
            "redis-write-timeout-ms": 10_000,
            "request-log-dir": self.root / "requests",
            "request-log-file-s": LOG_FILE_S,
        }
        log = self.root / "gateway.log"
        process = launch(log, *flags(settings))
        try:
            url = f"http://127.0.0.1:{port}"
            await_ready(process, url, log)
            with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)

    def _await_log(self, client: httpx.Client, requests: int) -> None:
        """Until every request that was answered is in the log's files."""
        until = monotonic() + PATIENCE_S
        while monotonic() < until:
            found = WRITTEN.search(client.get("/metrics").text)
            if found and float(found[1]) >= requests:
                return
            sleep(LOOK_EVERY_S)
        raise click.ClickException(f"{requests} requests were served, and are not in the log")


def flags(settings: dict[str, Any]) -> list[str]:
    """`--name value` of each."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def served_version(client: httpx.Client) -> str:
    """Of the package that serves now."""
    scenes = client.get("/v1/models").raise_for_status().json()["scenes"]
    return str(scenes[SCENE]["version"])


def await_version(client: httpx.Client, version: str) -> None:
    """Until the gateway has followed its link, verified the package and flipped."""
    until = monotonic() + PATIENCE_S
    while served_version(client) != version:
        if monotonic() > until:
            raise click.ClickException(f"the gateway does not serve {version}; see its log")
        sleep(LOOK_EVERY_S)


def differences(replay: dict[str, Any]) -> str:
    """Of GAUC, as served and scored again from the joined logs, by task."""
    found = (
        f"{task} {abs(pair['gauc_served'] - pair['gauc_again']):.0e}"
        for task, pair in replay.items()
        if pair["gauc_served"] is not None
    )
    return ", ".join(found) or "-"


HEADER = (
    f"{'':30}{'orders, % of the best':>24}\n"
    f"{'round':>5}  {'served by':9} {'requests':>8} {'regret':>7} {'ours':>8} {'recall':>7} "
    f"{'random':>7}  {'GAUC served - again':22} {'s':>4}  successor"
)


def line(number: int, row: Row) -> str:
    """One round of the table."""
    tally = row.tally
    ours, recall, random = (
        100 * tally.of_best(orders) for orders in (tally.served, tally.recall, tally.random)
    )
    return (
        f"{number:>5}  {row.served_by:9} {tally.requests:>8} {tally.regret:>7.2f} {ours:>8.1f} "
        f"{recall:>7.1f} {random:>7.1f}  {row.replayed:22} {row.seconds:>4.0f}  {row.verdict}"
    )


@click.command()
@click.option("--out", default=Path("var/loop"), type=click.Path(path_type=Path), help="directory")
@click.option("--rounds", default=3, show_default=True, help="of learning; one more is served")
@click.option("--users", default=200, show_default=True)
@click.option("--items", default=300, show_default=True)
@click.option("--days", default=2, show_default=True, help="simulated days of a round")
@click.option("--candidates", default=40, show_default=True, help="of a request")
@click.option("--top-k", default=8, show_default=True, help="items answered, and shown")
@click.option("--explore", default=2, show_default=True, help="of them random ones in their place")
@click.option("--epochs", default=8, show_default=True, help="of each training")
@click.option("--seed", default=0, show_default=True)
def loop(out: Path, **scale: int) -> None:
    """Serve simulated people, learn from it, serve better: the regret of each round.

    Regret is how many more orders of a hundred requests the best top-k, by the true probabilities,
    would have brought than the served one. It starts from a package that has seen next to nothing.
    """
    started = monotonic()
    click.echo(HEADER)
    rows = Loop(out, Scale(**scale)).run()
    first, last = rows[0].tally.regret, rows[-1].tally.regret
    degraded, refused = (
        sum(getattr(row.tally, n) for row in rows) for n in ("degraded", "refused")
    )
    click.echo(
        f"\nregret {first:.2f} -> {last:.2f} orders per 100 requests; {degraded} answers degraded, "
        f"{refused} refused and asked again"
    )
    click.echo(f"{monotonic() - started:.0f} s; every command's words: {out / 'commands.log'}")
