"""Two runs as ratios, second over first, and whatever else differs between them."""

from typing import Any

import msgspec

from loadtest.outcome import Outcome
from loadtest.run import Latency, Run


class Row(msgspec.Struct):
    """One measure of both runs."""

    measure: str
    unit: str
    first: float
    second: float
    ratio: float | None
    """Second over first; None where the first is zero."""


class Comparison(msgspec.Struct):
    """What changed."""

    first: str
    second: str
    rows: list[Row]
    different: dict[str, tuple[Any, Any]]
    """Settings and machine facts that were not the same: reasons to doubt the ratios."""


def compare(first: Run, second: Run) -> Comparison:
    """Measures that both runs have, in the order of a report."""
    rows = [
        _row("rate", "1/s", first.rate_per_s, second.rate_per_s),
        _row("goodput", "1/s", first.goodput_per_s, second.goodput_per_s),
        *_latencies("latency", first.latency, second.latency),
        *_latencies("refusals", first.refusals, second.refusals),
    ]
    for outcome in Outcome:
        shares = [run.outcomes[outcome] / max(1, run.sent) for run in (first, second)]
        rows.append(_row(outcome.value, "share", *shares))
    for stage in [stage for stage in first.stages if stage in second.stages]:
        rows += _latencies(f"stage {stage}", first.stages[stage], second.stages[stage])
    before, after = (
        {"tool": run.tool, "url": run.url, "seconds": run.seconds, **run.settings, **run.machine}
        for run in (first, second)
    )
    different = {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    return Comparison(first.name, second.name, rows, different)


def _latencies(name: str, first: Latency | None, second: Latency | None) -> list[Row]:
    if first is None or second is None:
        return []
    return [
        _row(f"{name} {p}", "ms", getattr(first, p), getattr(second, p))
        for p in ("p50", "p90", "p99")
    ]


def _row(measure: str, unit: str, first: float, second: float) -> Row:
    return Row(measure, unit, first, second, second / first if first else None)
