"""A long run at a share of capacity, with bursts, reloads and faults: nothing grows, all adds up.

python -m tests.bench.soak [--minutes 20] [--share 0.6] [--rate R] [--workers N] [--out FILE]

Capacity is the highest rate at which a short search finds nine of ten requests answered in full,
in time, at the second try at the latest, unless --rate says it.
Memory and open files are those of the gateway's processes, callers' connections apart, for those
come with the load. Their slopes are least squares over the least value of each minute (a sixtieth
of a shorter run), with a 95% interval: a second engine in memory through its probation comes and
goes, and what leaks stays. What falls does not leak. The client's counts and the server's are
compared class by class. Exit status 0: flat, equal, nothing failed.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import click
import numpy as np

from loadtest.goal import Goal
from loadtest.material import MARKETPLACE, read_material
from loadtest.open_loop import Limits, Measured, generate
from loadtest.outcome import Outcome
from loadtest.page import page
from loadtest.run import Mark, Run, summarize, write_run
from loadtest.schedule import Stage, schedule
from loadtest.traffic import Mix, Traffic
from service.backends.switching import PROBATION_S
from tests.bench.soak_world import World, disturbed, world

CYCLE_S = 240.0
"""Faults come round once in so long, or once in a shorter run."""

BURST = 2.0
"""A fifth of each minute is at so many times the mean rate."""

WARM = 0.1
"""Share of the run left out of the slopes: caches fill."""

FLAT = 0.02
"""Growth over the whole run that is none, of the mean, where the interval excludes zero."""

PROBE_S, FIRST_RATE, GOOD = 4.0, 40.0, 0.9

# Requests are given up long after their deadline: the server's answer comes before, and counts.
LIMITS = Limits(connections=256, give_up_ms=60_000, max_lag_ms=1e9)
MOST = 10_000_000


@dataclass(frozen=True)
class Slope:
    """Least squares of a series."""

    mean: float
    per_hour: float
    low: float
    high: float
    """95% interval."""
    hours: float

    @property
    def flat(self) -> bool:
        """Whether it may be zero or falls, or comes to next to nothing over the run."""
        return self.low <= 0 or self.per_hour * self.hours < FLAT * self.mean

    def __str__(self) -> str:
        verdict = ("falls" if self.high < 0 else "flat") if self.flat else "NOT FLAT"
        return (
            f"mean {self.mean:.1f}, slope {self.per_hour:+.2f} an hour "
            f"[{self.low:+.2f}, {self.high:+.2f}]: {verdict}"
        )


def slope(points: list[tuple[float, float]], seconds: float) -> Slope:
    """Of (seconds, value), without the warm-up; a block of neighbours counts once."""
    at, values = np.array([p for p in points if p[0] > WARM * seconds]).T
    block = (at / min(60.0, seconds / 60)).astype(int)
    hours = np.array([at[block == b].mean() for b in np.unique(block)]) / 3600
    least = np.array([values[block == b].min() for b in np.unique(block)])
    centred = hours - hours.mean()
    spread = float((centred**2).sum())
    per_hour = float(centred @ least) / spread
    residual = least - least.mean() - per_hour * centred
    freedom = len(least) - 2
    student = 1.96 + 2.37 / freedom + 2.8 / freedom**2
    error = student * sqrt(float(residual @ residual) / freedom / spread)
    return Slope(float(values.mean()), per_hour, per_hour - error, per_hour + error, seconds / 3600)


def capacity(url: str, traffic: Traffic) -> float:
    """The highest of rates, each 1.4 times the one before, at which nine of ten valid requests get
    a full answer in time."""
    measure(url, traffic, [Stage(PROBE_S, FIRST_RATE)])  # the first requests of all are slow

    def good(rate: float) -> bool:
        done = measure(url, traffic, [Stage(PROBE_S, rate)])
        share = done.outcomes["answered"] / max(1, done.sent - done.outcomes["invalid"])
        click.echo(f"  {rate:6.1f}/s: {share:.0%} answered in full, in time")
        return share >= GOOD

    rate = FIRST_RATE
    while not (good(rate) or good(rate)):
        rate /= 1.4
    while good(1.4 * rate) or good(1.4 * rate):
        rate *= 1.4
    return rate


def measure(url: str, traffic: Traffic, stages: list[Stage]) -> Run:
    """One open-loop run."""
    plan = schedule(stages, "sessions", most=MOST, mean_session=2.5)
    measured: Measured = generate(url, traffic, plan, LIMITS)
    return summarize(
        measured.samples,
        tool="open-loop",
        name="soak",
        url=url,
        seconds=plan.seconds,
        generator=measured.generator,
        goal=Goal(p99_ms=traffic.mix.deadline_ms, unserved=1.0, failed=0.0),
        settings={**traffic.describe()},
        stages=[(f"{stage.level:.0f}/s", stage.seconds) for stage in stages],
    )


def waves(rate: float, seconds: float) -> list[Stage]:
    """Minutes with a burst each, of `rate` requests a second on average."""
    minute = min(60.0, seconds)
    burst = Stage(0.2 * minute, BURST * rate)
    calm = Stage(0.8 * minute, (1 - 0.2 * BURST) / 0.8 * rate)
    return [calm, burst] * round(seconds / minute)


def faults(here: World, seconds: float) -> list[tuple[float, str, Callable[[], None]]]:
    """What is done to the world, and when."""
    cycle = min(CYCLE_S, seconds)
    deeds: list[tuple[float, str, Callable[[], None]]] = [
        (0.10, "settings reloaded", here.reload),
        (0.25, "Redis restarted", here.restart_redis),
        (0.45, "engine switched", here.switch_engine),
        (0.60, "settings reloaded", here.reload),
    ]
    if cycle >= 2 * PROBATION_S:
        deeds.append((0.85, "engine switched", here.switch_engine))
    if here.workers > 1:
        deeds.insert(4, (0.70, "worker killed", here.kill_worker))
    return [
        ((turn + share) * cycle, name, deed)
        for turn in range(round(seconds / cycle))
        for share, name, deed in deeds
    ]


def client_counts(done: Run) -> dict[str, int]:
    """What the client saw, late ones under what they were in time."""
    counts = {name: done.outcomes[name] for name in ("answered", "degraded", "refused", "invalid")}
    for reason, count in done.reasons.get(Outcome.LATE, {}).items():
        word = reason.partition(" ")[0]
        counts[word if word in counts else "unknown"] = counts.get(word, 0) + count
    return counts


def server_counts(before: dict[str, float], after: dict[str, float]) -> dict[str, int]:
    """What the server counted in between."""

    def total(*prefixes: str) -> int:
        names = [name for name in after if name.startswith(prefixes)]
        return round(sum(after[name] - before.get(name, 0.0) for name in names))

    def requests(outcome: str) -> int:
        names = [n for n in after if n.startswith("mtgr_requests_total{") and outcome in n]
        return round(sum(after[name] - before.get(name, 0.0) for name in names))

    events = [n for n in after if n.startswith("mtgr_events_total{") and '"labels"' not in n]
    return {
        "answered": requests('"answered"')
        + round(sum(after[name] - before.get(name, 0.0) for name in events)),
        "degraded": requests('"degraded"'),
        "refused": total("mtgr_refused_total{"),
        "invalid": total("mtgr_invalid_total{"),
    }


@click.command()
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--share", default=0.6, show_default=True, help="of capacity, on average")
@click.option("--rate", type=float, help="capacity in requests a second  [measured]")
@click.option("--deadline-ms", default=1000, show_default=True, help="of each request")
@click.option("--workers", default=1, show_default=True, help="processes of the gateway")
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/soak/soak.json"))
def main(
    minutes: float, share: float, rate: float | None, deadline_ms: int, workers: int, out: Path
) -> None:
    """Run the soak."""
    traffic = Traffic(read_material(MARKETPLACE), Mix(deadline_ms=deadline_ms))
    seconds = 60 * minutes
    with world(workers) as here:
        most = capacity(here.url, traffic) if rate is None else rate
        click.echo(f"capacity {most:.0f}/s; {minutes:g} minutes at {share * most:.1f}/s on average")
        before = here.settled()
        with disturbed(here, faults(here, seconds)):
            done = measure(here.url, traffic, waves(share * most, seconds))
        after = here.settled()
        status = here.end()
        problems = list(here.failures)
    ours, theirs = client_counts(done), server_counts(before, after)
    memory, files = slope(here.memory, seconds), slope(here.files, seconds)
    done.marks = [Mark(round(at, 1), text) for at, text in here.marks]
    done.watched = {"resident memory, MiB": here.memory, "open files": here.files}
    done.settings |= {
        "capacity_per_s": round(most, 1),
        "share": share,
        "workers": workers,
        "memory_mib": str(memory),
        "open_files": str(files),
        "client_counts": ours,
        "server_counts": theirs,
    }
    if not memory.flat:
        problems.append("memory is not flat")
    if not files.flat:
        problems.append("open files are not flat")
    if ours != theirs or sum(ours.values()) != done.sent:
        problems.append(f"counts differ: sent {done.sent}, client {ours}, server {theirs}")
    if done.outcomes["failed"]:
        problems.append(f"failed: {done.reasons['failed']}")
    if status:
        problems.append(f"the gateway ended with status {status}")
    done.missed += problems
    write_run(done, out)
    out.with_suffix(".html").write_text(page(done))
    sums = " + ".join(f"{count} {name}" for name, count in ours.items())
    click.echo(f"{done.sent} sent = {sums} (the server counted {sum(theirs.values())})")
    click.echo(f"of them late: {done.outcomes['late']}; failed: {done.outcomes['failed']}")
    click.echo(f"resident memory, MiB: {memory}\nopen files: {files}")
    deeds = {text: sum(m.text == text for m in done.marks) for text in {m.text for m in done.marks}}
    click.echo(f"done to it: {deeds}\n{out} and {out.with_suffix('.html')}")
    for problem in problems:
        click.echo(f"PROBLEM: {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
