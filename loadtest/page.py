"""A run as one HTML page without anything from elsewhere: verdict, numbers, charts, tables."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from loadtest.charts import Chart, number
from loadtest.outcome import Outcome
from loadtest.run import Latency, Run, Step

STYLE = Path(__file__).with_name("page.css")

STAGE_COLOURS = 10
PERCENTILES = ("p50", "p90", "p99", "max")
COUNTED = (Outcome.REFUSED, Outcome.DEGRADED, Outcome.LATE, Outcome.FAILED, Outcome.INVALID)


def page(run: Run) -> str:
    """The document."""
    verdict = "missed" if run.missed else "met"
    loop = "open loop: latency from the moment a request was due"
    if run.generator.loop == "closed":
        loop = "closed loop: latency from the moment a request was sent (waiting users send less)"
    parts = [
        f"<header><h1>{escape(run.name)}</h1><p>{escape(run.tool)} · {escape(run.url)} · "
        f"{escape(run.started)} · {number(run.seconds)} s · {loop}</p></header>",
        f'<section class="verdict {verdict}"><b>Goal {verdict}</b> {_verdict(run)}</section>',
        _tiles(run),
        '<div class="charts">',
        _card("Latency of the served over time", _latency_over_time(run)),
        _card("Requests by outcome", _outcomes_over_time(run)),
        _card("Refusals by reason", _refusals_over_time(run)),
        *(_card(name, _watched(run, name)) for name in run.watched),
        _card("Rate against p99", _rate_against_p99(run)),
        _card("Latency distribution", _distribution(run)),
        _card("Stages of an answer, as the server timed them", _stages(run)),
        _card("Why not answered in full", _reasons(run)),
        "</div>",
        _card("What was done to the service", _done(run)),
        _card("By kind of request", _latency_table("kind", run.kinds)),
        _card("Trials" if run.tool == "search" else "Steps", _steps(run)),
        _card("Settings", _pairs({**run.settings, **run.machine})),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(run.name)}</title><style>{STYLE.read_text()}</style></head>"
        f"<body><main>{''.join(part for part in parts if part)}</main></body></html>\n"
    )


def _verdict(run: Run) -> str:
    goal = f"p99 ≤ {run.goal.p99_ms:g} ms, at most {run.goal.unserved:.1%} not answered in full"
    goal += f", {run.goal.failed:.1%} failed"
    verdict = "; ".join(run.missed) if run.missed else goal
    if run.tool == "search":
        found, beyond = (run.settings[name] for name in ("found_rate_per_s", "missed_at_per_s"))
        rate = "no rate" if found is None else f"up to {number(found)} requests/s"
        limit = "" if beyond is None else f" (missed at {number(beyond)})"
        verdict = f"{rate}{limit}: {verdict}"
    return escape(verdict)


def _tiles(run: Run) -> str:
    valid = max(1, run.sent - run.outcomes[Outcome.INVALID])
    tiles = [
        ("sent", f"{run.rate_per_s:,.0f}/s", f"{run.sent:,} requests"),
        ("goodput", f"{run.goodput_per_s:,.0f}/s", "answered in full, in time"),
    ]
    if run.latency is not None:
        taken = run.latency
        tiles += [
            ("p50", f"{number(taken.p50)} ms", f"mean {number(taken.mean)} ms"),
            ("p99", f"{number(taken.p99)} ms", f"{taken.p99 / max(taken.p50, 1e-9):.1f} x p50"),
            ("p99.9", f"{number(taken.p999)} ms", f"max {number(taken.max)} ms"),
        ]
    for outcome in (Outcome.DEGRADED, Outcome.REFUSED, Outcome.LATE, Outcome.FAILED):
        count = run.outcomes[outcome]
        note = f"{count:,} requests"
        if outcome is Outcome.REFUSED and run.refusals is not None:
            note = f"{count:,}, p99 {number(run.refusals.p99)} ms"
        tiles.append((outcome, f"{count / valid:.2%}", note))
    lag, share = run.generator.lag_p99_ms, f"{run.generator.cpu_share:.0%} of a core"
    if lag is None:
        tiles.append(("generator", share, "closed loop: it has no schedule"))
    else:
        tiles.append(("generator lag", f"{number(lag)} ms", f"p99, at {share}"))
    cells = "".join(
        f'<div class="tile {name if run.outcomes.get(name) else ""}"><span>{escape(name)}</span>'
        f"<b>{escape(value)}</b><small>{escape(note)}</small></div>"
        for name, value, note in tiles
    )
    sums = " + ".join(f"{count:,} {name}" for name, count in run.outcomes.items())
    return f'<section class="tiles">{cells}</section><p class="sum">{run.sent:,} sent = {sums}</p>'


def _latency_over_time(run: Run) -> str:
    told = [window.latency for window in run.windows if window.latency is not None]
    if not told:
        return ""
    low, high = min(t.p50 for t in told), max(t.max for t in told)
    chart = Chart(
        "seconds since the start",
        "milliseconds",
        (0, run.seconds),
        _decades(min(low, run.goal.p99_ms), max(high, run.goal.p99_ms)),
        log_y=True,
    )
    for name in PERCENTILES:
        chart.line(
            name,
            name,
            (
                None if w.latency is None else (w.start_s + 0.5, getattr(w.latency, name))
                for w in run.windows
            ),
        )
    chart.rule(f"goal for p99, {run.goal.p99_ms:g} ms", "goal", y=run.goal.p99_ms)
    _marks(chart, run)
    return chart.svg()


def _watched(run: Run, name: str) -> str:
    """A series from zero: what grows should look as if it grew."""
    points = run.watched[name]
    if not points:
        return ""
    tallest = max(value for _, value in points)
    chart = Chart("seconds since the start", name, (0, run.seconds), (0, _headroom(tallest)))
    chart.line(name, "p90", points)
    _marks(chart, run)
    return chart.svg()


def _marks(chart: Chart, run: Run) -> None:
    for mark in run.marks:
        chart.mark(mark.text, mark.at_s)


def _outcomes_over_time(run: Run) -> str:
    tallest = max((sum(w.outcomes.values()) for w in run.windows), default=0)
    if not tallest:
        return ""
    chart = Chart(
        "seconds since the start", "requests a second", (0, run.seconds), (0, _headroom(tallest))
    )
    seen = [outcome for outcome in Outcome if run.outcomes[outcome]]
    chart.stacks(
        [(outcome.value, outcome.value) for outcome in seen],
        (
            (w.start_s, min(w.start_s + 1, run.seconds), [w.outcomes[o] for o in seen])
            for w in run.windows
        ),
    )
    _marks(chart, run)
    return chart.svg()


def _refusals_over_time(run: Run) -> str:
    reasons = list(run.reasons.get(Outcome.REFUSED, {}))
    if not reasons:
        return ""
    tallest = max(sum(w.refused.values()) for w in run.windows)
    chart = Chart(
        "seconds since the start", "refusals a second", (0, run.seconds), (0, _headroom(tallest))
    )
    chart.stacks(
        [(reason, f"stage{i % STAGE_COLOURS}") for i, reason in enumerate(reasons)],
        (
            (w.start_s, min(w.start_s + 1, run.seconds), [w.refused.get(r, 0) for r in reasons])
            for w in run.windows
        ),
    )
    _marks(chart, run)
    return chart.svg()


def _done(run: Run) -> str:
    """What the flags on the charts stand for."""
    if not run.marks:
        return ""
    times: dict[str, list[str]] = {}
    for mark in run.marks:
        times.setdefault(mark.text, []).append(number(mark.at_s))
    return _table(
        ["what", "seconds since the start"], [[escape(t), ", ".join(at)] for t, at in times.items()]
    )


def _rate_against_p99(run: Run) -> str:
    points = [(step, step.latency.p99) for step in run.steps if step.latency is not None]
    if len(points) < 2:
        return ""
    values = [p99 for _, p99 in points]
    chart = Chart(
        "requests a second",
        "p99, milliseconds",
        (0, _headroom(max(step.rate_per_s for step, _ in points))),
        _decades(min(*values, run.goal.p99_ms), max(*values, run.goal.p99_ms)),
        log_y=True,
    )
    chart.rule(f"goal, {run.goal.p99_ms:g} ms", "goal", y=run.goal.p99_ms)
    if (found := run.settings.get("found_rate_per_s")) is not None:
        chart.rule(f"found {number(found)}/s", "p50", x=found)
    for css in ("met", "missed"):
        chart.dots(
            f"goal {css}",
            css,
            (
                (step.rate_per_s, p99, _told(step))
                for step, p99 in points
                if ("missed" if step.missed else "met") == css
            ),
        )
    return chart.svg()


def _told(step: Step) -> str:
    p99 = "" if step.latency is None else f", p99 {number(step.latency.p99)} ms"
    missed = f": {'; '.join(step.missed)}" if step.missed else ""
    return f"{number(step.rate_per_s)}/s for {number(step.seconds)} s{p99}{missed}"


def _distribution(run: Run) -> str:
    """Percentiles on an axis where each nine is as wide as the one before it."""
    points = [(100 / (100 - p), ms) for p, ms in run.distribution if p < 100]
    if len(points) < 2:
        return ""
    ticks = [(1, "0"), (2, "50"), (10, "90"), (100, "99"), (1000, "99.9"), (10000, "99.99")]
    last = points[-1][0]
    values = [ms for _, ms in points]
    chart = Chart(
        "percentile",
        "milliseconds",
        (1, last),
        _decades(min(*values, run.goal.p99_ms), max(*values, run.goal.p99_ms)),
        log_x=True,
        log_y=True,
        x_ticks=[tick for tick in ticks if tick[0] <= last],
    )
    chart.rule(f"goal for p99, {run.goal.p99_ms:g} ms", "goal", y=run.goal.p99_ms)
    chart.line("served", "p99", points)
    return chart.svg()


def _stages(run: Run) -> str:
    """Where an answer's time goes on average, as one bar, and each stage's percentiles."""
    whole = sum(taken.mean for taken in run.stages.values())
    if not whole:
        return ""
    parts, keys = [], []
    for i, (stage, taken) in enumerate(run.stages.items()):
        css, share = f"stage{i % STAGE_COLOURS}", taken.mean / whole
        told = escape(f"{stage} {number(taken.mean)} ms, {share:.0%}")
        parts.append(f'<i class="{css}" style="width:{share:.2%}" title="{told}"></i>')
        keys.append(f'<span class="key"><i class="{css}"></i>{told}</span>')
    return (
        f'<div class="whole">{"".join(parts)}</div><div class="legend">{"".join(keys)}</div>'
        f"<p></p>{_latency_table('stage', run.stages)}"
    )


def _latency_table(what: str, latencies: dict[str, Latency]) -> str:
    """Percentiles by name, with bars that compare the p50s and p99s."""
    if not latencies:
        return ""
    widest = max(taken.p99 for taken in latencies.values()) or 1
    rows = [
        [
            escape(name),
            f"{taken.count:,}",
            *(number(getattr(taken, p)) for p in ("mean", *PERCENTILES)),
            f'<div class="meter"><i class="p99" style="width:{taken.p99 / widest:.1%}"></i>'
            f'<i class="p50" style="width:{taken.p50 / widest:.1%}"></i></div>',
        ]
        for name, taken in latencies.items()
    ]
    return _table([what, "count", "mean ms", *(f"{p} ms" for p in PERCENTILES), "p50, p99"], rows)


def _reasons(run: Run) -> str:
    counts = [
        (outcome.value, reason, count)
        for outcome in COUNTED
        for reason, count in run.reasons.get(outcome, {}).items()
    ]
    most = max((count for *_, count in counts), default=0)
    rows = [
        [
            f'<span class="key"><i class="{outcome}"></i>{outcome}</span>',
            escape(reason),
            f"{count:,}",
            f'<div class="meter"><i class="{outcome}" style="width:{count / most:.1%}"></i></div>',
        ]
        for outcome, reason, count in counts
    ]
    return _table(["outcome", "reason", "count", ""], rows) if rows else "<p>Nothing.</p>"


def _steps(run: Run) -> str:
    rows = []
    for step in run.steps:
        taken = step.latency
        rows.append(
            [
                escape(step.label),
                number(step.rate_per_s),
                number(step.seconds),
                *("–" if taken is None else number(getattr(taken, p)) for p in PERCENTILES),
                *(f"{step.outcomes[outcome]:,}" for outcome in Outcome),
                escape("; ".join(step.missed)) or '<span class="ok">met</span>',
            ]
        )
    head = ["", "rate/s", "seconds", *(f"{p} ms" for p in PERCENTILES)]
    return _table([*head, *(o.value for o in Outcome), "goal"], rows)


def _pairs(values: dict[str, Any]) -> str:
    pairs = (f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in values.items())
    return f"<dl>{''.join(f'<div>{pair}</div>' for pair in pairs)}</dl>"


def _table(head: Iterable[str], rows: Iterable[list[str]]) -> str:
    """Cells are HTML already."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def _card(title: str, content: str) -> str:
    """Nothing where there is nothing to show."""
    return f"<section class='card'><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _headroom(value: float) -> float:
    """Where an axis ends that starts at zero."""
    return value * 1.08


def _decades(low: float, high: float) -> tuple[float, float]:
    """A logarithmic axis around positive values, with some air."""
    return max(low, 1e-3) / 1.3, max(high, 1e-3) * 1.3
