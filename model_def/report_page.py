"""An evaluation as one HTML page without anything from elsewhere."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from model_def.evaluate import Evaluation, Slice, TaskReport
from model_def.line_chart import line_chart

STYLE = Path(__file__).with_name("report_page.css")


def evaluation_page(found: Evaluation, curves: Mapping[str, list[float]]) -> str:
    """The document; `curves` are the columns of the training's curves.csv, or none."""
    tasks = [report.task for report in found.held_out]
    parts = [
        f"<header><h1>{escape(found.version)}</h1>"
        f"<p>exposures from {escape(found.since)} UTC, which it was not trained on</p></header>",
        _card("Held out", _reports(found)),
        '<div class="charts">',
        *(_card(f"Calibration, {r.task}", _calibration(r)) for r in found.held_out),
        *(_card(f"Training, {what}", _curve(curves, names)) for what, names in _curves(tasks)),
        "</div>",
        *(_card(f"By {kind}", _slices(found.slices, kind)) for kind in ("scene", "history")),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(found.version)}</title><style>{STYLE.read_text()}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _reports(found: Evaluation) -> str:
    head = ["", "task", "exposures", "positives", "AUC", "GAUC by user", "GAUC by request"]
    rows = [
        [who, r.task, f"{r.exposures:,}", f"{r.positives:,}", f"{r.auc:.4f}"]
        + [f"{g.value:.4f} <small>of {g.groups:,}</small>" for g in (r.gauc_user, r.gauc_request)]
        + [f"{r.normalized_entropy:.4f}", f"{r.calibration:.3f}"]
        for who, reports in (("model", found.held_out), ("best reachable", found.best_reachable))
        for r in reports
    ]
    note = (
        "<p>GAUC: mean of the AUCs of the groups that have both classes. NE: log loss over that of "
        "the mean rate, below 1 is better. Best reachable: the true probabilities of simulated "
        "logs.</p>"
    )
    return _table([*head, "NE", "predicted / actual"], rows) + note


def _calibration(report: TaskReport) -> str:
    bins = [(b.predicted, b.actual) for b in report.bins]
    labels = "mean prediction of a tenth", "rate of positives"
    return line_chart({report.task: bins}, *labels, log=True, diagonal=True)


def _curves(tasks: Iterable[str]) -> list[tuple[str, list[str]]]:
    tasks = list(tasks)
    return [
        ("loss", ["loss"]),
        ("AUC before a step learns from it", [f"auc_{task}" for task in tasks]),
        ("NE", [f"ne_{task}" for task in tasks]),
        ("learning rate", ["rate"]),
    ]


def _curve(curves: Mapping[str, list[float]], names: Iterable[str]) -> str:
    if not curves:
        return ""
    series = {name: list(zip(curves["step"], curves[name], strict=True)) for name in names}
    return line_chart(series, "step", "")


def _slices(slices: Iterable[Slice], kind: str) -> str:
    rows = [
        [
            s.task,
            escape(s.part),
            f"{s.exposures:,}",
            f"{s.positives:,}",
            f"{s.auc:.4f}",
            f"{s.gauc_request.value:.4f} <small>of {s.gauc_request.groups:,}</small>",
            f"{s.calibration:.3f}",
        ]
        for s in slices
        if s.kind == kind
    ]
    part = "scene" if kind == "scene" else "tokens of history"
    head = ["task", part, "exposures", "positives", "AUC", "GAUC by request", "predicted / actual"]
    return _table(head, rows)


def _table(head: Iterable[str], rows: Iterable[list[str]]) -> str:
    """Cells are HTML already."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def _card(title: str, content: str) -> str:
    """Nothing where there is nothing to show."""
    return f'<section class="card"><h2>{escape(title)}</h2>{content}</section>' if content else ""
