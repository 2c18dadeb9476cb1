"""The `mtgr load` commands. Every flag is also an environment variable, `LOAD_<FLAG>`."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

import click
import msgspec

from loadtest.client import BadUrl
from loadtest.compare import compare as compared
from loadtest.goal import Goal
from loadtest.material import MARKETPLACE, BadMaterial, read_material
from loadtest.open_loop import Limits, generate
from loadtest.page import page
from loadtest.run import BadRun, Run, read_run, summarize, write_run
from loadtest.schedule import ARRIVALS, Arrivals, Stage, parse_stages, schedule
from loadtest.search import Bounds
from loadtest.search import search as searched
from loadtest.traffic import Mix, Traffic

Command = Callable[..., Any]


def _flags(*options: Any) -> Callable[[Command], Command]:
    """Several click options as one decorator, in the order given."""
    return lambda command: reduce(lambda done, option: option(done), reversed(options), command)


MIX = [
    click.option(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default)
    for f in fields(Mix)
]
"""A flag for every field of Mix, of its name."""

GOAL = _flags(
    click.option("--p99-ms", default=50.0, help="goal: p99 of the served, milliseconds"),
    click.option("--unserved", default=0.01, help="goal: share not answered in full, at most"),
    click.option("--failed", default=0.0, help="goal: share that fails, at most"),
)
TRAFFIC = _flags(
    click.option("--url", default="http://127.0.0.1:8000"),
    click.option(
        "--header", "headers", multiple=True, metavar="NAME:VALUE", help="sent with each request"
    ),
    click.option(
        "--material",
        type=click.Path(exists=True, path_type=Path),
        default=MARKETPLACE,
        help="traffic file (.jsonl) or description of the features (.json)",
    ),
    click.option("--arrivals", type=click.Choice(ARRIVALS), default="poisson"),
    click.option("--seed", default=0),
    click.option("--connections", default=256, help="open at a time, at most"),
    click.option("--give-up-ms", default=5000.0, help="no answer so long after due: late"),
    click.option("--max-lag-ms", default=5.0, help="p99 of our own lag that spoils a run"),
    click.option("--busy-wait", is_flag=True, help="wait awake: a core for an exact latency"),
    click.option("--most-requests", default=1_000_000, help="of one run or trial, at most"),
    *MIX,
)
OUT = _flags(
    click.option("--name", default="load test", help="title of the report"),
    click.option(
        "--out", type=click.Path(path_type=Path), default=Path("var/load/run.json"), help="JSON"
    ),
)


@click.group(context_settings={"auto_envvar_prefix": "LOAD"})
def load() -> None:
    """Load tests over HTTP: open loop, search for capacity, Locust; reports and comparisons."""


@load.command()
@click.option("--stages", default="10:100", help="SECONDS:RATE,..., rate in requests a second")
@GOAL
@OUT
@TRAFFIC
def run(stages: str, name: str, out: Path, **flags: Any) -> None:
    """Send requests on a schedule; exit with 1 where the goal is missed."""
    with _faults():
        bench = _Bench(name, flags)
        done = bench.measure(parse_stages(stages), "open-loop")
    _finish(done, out)


@load.command()
@click.option("--low", default=50.0, help="rate to begin with, requests a second")
@click.option("--high", default=5000.0, help="rate not to exceed, requests a second")
@click.option("--trial-s", default=5.0, help="length of one trial, seconds")
@click.option("--resolution", default=0.05, help="share between met and missed to stop at")
@click.option("--repeats", default=2, help="equal verdicts that settle a rate")
@click.option("--most-trials", default=60)
@GOAL
@OUT
@TRAFFIC
def find(
    low: float,
    high: float,
    trial_s: float,
    resolution: float,
    repeats: int,
    most_trials: int,
    name: str,
    out: Path,
    **flags: Any,
) -> None:
    """Find the highest rate that meets the goal; exit with 1 where none does."""
    with _faults():
        bench = _Bench(name, flags)
        bounds = Bounds(low, high, resolution, repeats, most_trials)

        def trial(rate: float) -> Run:
            done = bench.measure([Stage(trial_s, rate)], "search")
            verdict = "; ".join(done.missed) or "met"
            p99 = "-" if done.latency is None else f"{done.latency.p99:.1f} ms"
            click.echo(f"{rate:8.1f}/s  p99 {p99:>10}  {verdict}")
            return done

        found = searched(trial, bounds)
    best = found.best
    best.steps = [step for _, done in found.trials for step in done.steps]
    best.settings |= {
        "found_rate_per_s": found.rate,
        "missed_at_per_s": found.missed_at,
        "search_stopped": found.stopped,
    }
    rate = "no rate" if found.rate is None else f"{found.rate:.1f} requests/s"
    limit = "" if found.missed_at is None else f", missed at {found.missed_at:.1f}"
    click.echo(f"{rate} met the goal{limit}{f' ({found.stopped})' if found.stopped else ''}")
    _finish(best, out, failed=found.rate is None)


@load.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def locust(arguments: tuple[str, ...]) -> None:
    """Locust with our users; ARGUMENTS go to Locust (--help lists ours among its own)."""
    file = Path(__file__).with_name("locustfile.py")
    command = [sys.executable, "-m", "locust", "-f", str(file), *arguments]
    raise SystemExit(subprocess.run(command, check=False).returncode)


@load.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
def report(path: Path) -> None:
    """Write the HTML page of the run at PATH beside it."""
    with _faults():
        done = read_run(path)
    click.echo(_write_page(done, path))


@load.command()
@click.argument("first", type=click.Path(exists=True, path_type=Path))
@click.argument("second", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print a JSON document")
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Measures of two runs and their ratios, SECOND over FIRST."""
    with _faults():
        comparison = compared(read_run(first), read_run(second))
    if as_json:
        click.echo(msgspec.json.encode(comparison))
        return
    for row in comparison.rows:
        ratio = "" if row.ratio is None else f"{row.ratio:8.2f} x"
        click.echo(f"{row.measure:24}{row.first:14.4g}{row.second:14.4g} {row.unit:6}{ratio}")
    for setting, (before, after) in comparison.different.items():
        click.echo(f"not the same: {setting}: {before} / {after}")


class _Bench:
    """Traffic at one server, to be measured at one rate or many."""

    def __init__(self, name: str, flags: dict[str, Any]):
        self._name, self._flags = name, flags
        mix = Mix(**{f.name: flags[f.name] for f in fields(Mix)})
        self._traffic = Traffic(read_material(flags["material"]), mix, flags["seed"])
        self._goal = Goal(flags["p99_ms"], flags["unserved"], flags["failed"])
        names = ("connections", "give_up_ms", "max_lag_ms", "busy_wait")
        self._limits = Limits(*(flags[name] for name in names))
        self._headers = tuple(_header(text) for text in flags["headers"])

    def measure(self, stages: list[Stage], tool: Any) -> Run:
        """One run through `stages`."""
        flags = self._flags
        arrivals: Arrivals = flags["arrivals"]
        plan = schedule(
            stages,
            arrivals,
            most=flags["most_requests"],
            mean_session=flags["session_requests"],
            seed=flags["seed"],
        )
        measured = generate(flags["url"], self._traffic, plan, self._limits, self._headers)
        # header values may be secrets
        told = {name: value for name, value in flags.items() if name not in ("url", "headers")}
        return summarize(
            measured.samples,
            tool=tool,
            name=self._name,
            url=flags["url"],
            seconds=plan.seconds,
            generator=measured.generator,
            goal=self._goal,
            settings={
                **told,
                "material": Path(flags["material"]).name,
                "waited_for_a_connection": measured.waited,
            },
            stages=[(f"{stage.level:g}/s", stage.seconds) for stage in stages],
        )


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator or not name.strip() or "\n" in text or "\r" in text:
        raise ValueError(f"--header {name!r}: expected NAME:VALUE")
    return name.strip().lower(), value.strip()


class _faults:
    """What the caller got wrong, as click tells it."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, fault: Any, trace: Any) -> None:
        if isinstance(fault, (ValueError, BadUrl, BadMaterial, BadRun)):
            raise click.ClickException(str(fault)) from None


def _finish(done: Run, out: Path, failed: bool | None = None) -> None:
    """Write everything, say what came of it, and exit."""
    write_run(done, out)
    counts = ", ".join(f"{count} {name}" for name, count in done.outcomes.items() if count)
    click.echo(f"{done.sent} sent in {done.seconds:g} s: {counts}")
    if done.latency is not None:
        told = done.latency
        click.echo(f"served: p50 {told.p50:.2f}, p99 {told.p99:.2f}, p99.9 {told.p999:.2f} ms")
    for what in done.missed:
        click.echo(f"missed: {what}")
    click.echo(f"{out}\n{_write_page(done, out)}")
    raise SystemExit(int(bool(done.missed) if failed is None else failed))


def _write_page(done: Run, path: Path) -> Path:
    html = path.with_suffix(".html")
    html.write_text(page(done))
    return html


if __name__ == "__main__":
    load()
