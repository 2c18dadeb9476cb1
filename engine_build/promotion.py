"""May a candidate package take over from the one that serves? The gate, and the link it moves."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import Field
from pydantic_core import PydanticUndefined

from engine_build.comparison import (
    Comparison,
    PromotionError,
    Quality,
    compare,
    newest_labelled_day,
)
from engine_build.runtime.engine import EngineError
from engine_build.runtime.manifest import EngineKind
from engine_build.runtime.package import open_package
from model_def.data.logs import LogError, Logs
from model_def.data.parquet import read_logs
from model_def.data.samples import select_requests
from model_def.data.served_scores import read_served
from model_def.schema import Frozen


class Thresholds(Frozen):
    """What is still let through."""

    max_gauc_loss: float = Field(default=1e-3, description="of any task, by user or by request")
    max_ne_rise: float = Field(default=0.01, description="of any task's normalized entropy")
    max_miscalibration: float = Field(
        default=0.2,
        ge=0,
        description="0.2: predicted within a factor 1.2 of actual, or nearer than serving's",
    )
    max_psi: float = Field(
        default=0.25, ge=0, description="population stability index of any scene's scores"
    )
    max_latency_ratio: float = Field(default=1.2, gt=0, description="of the engines' medians")
    max_replay_difference: float = Field(
        default=1e-6, ge=0, description="of GAUC, between scores as served and scored again"
    )
    min_requests: int = Field(default=100, ge=1, description="labelled, on the day")


def objections(found: Comparison, limits: Thresholds) -> list[str]:
    """Every reason why the candidate may not serve."""
    reasons = []
    if found.requests < limits.min_requests:
        reasons.append(f"{found.requests} requests: at least {limits.min_requests} are needed")
    for task, new in found.candidate.items():
        if not 0 < new.positives < new.exposures:
            reasons.append(
                f"{task}: {new.positives} positives of {new.exposures} labelled exposures; "
                "expected some of both classes"
            )
            continue
        reasons += _objections_to_task(task, found.serving[task], new, limits)
    for scene, moved in found.shift.items():
        if moved.psi > limits.max_psi:
            reasons.append(
                f"scene {scene}: scores moved, PSI {moved.psi:.3f}, at most {limits.max_psi:g}"
            )
    ratio = found.latency_ms["candidate"]["p50"] / found.latency_ms["serving"]["p50"]
    if ratio > limits.max_latency_ratio:
        reasons.append(
            f"latency: {ratio:.2f} times the serving engine's, at most {limits.max_latency_ratio:g}"
        )
    for task, pair in found.replay.items():
        if not _near(pair.gauc_served, pair.gauc_again, limits.max_replay_difference):
            reasons.append(
                f"{task}: the serving package scores what it served at GAUC "
                f"{pair.gauc_again:.6f}, and served {pair.gauc_served:.6f}: what is logged is not "
                "what was served"
            )
    return reasons


def _objections_to_task(task: str, old: Quality, new: Quality, limits: Thresholds) -> list[str]:
    reasons = []
    for group in ("user", "request"):
        before, after = (getattr(q, f"gauc_{group}") for q in (old, new))
        if not after >= before - limits.max_gauc_loss:  # NaN is no proof either
            reasons.append(
                f"{task}: GAUC by {group} {after:.4f}, serving has {before:.4f}, and may lose at "
                f"most {limits.max_gauc_loss:g}"
            )
    rise = new.normalized_entropy - old.normalized_entropy
    if not rise <= limits.max_ne_rise:
        reasons.append(
            f"{task}: NE {new.normalized_entropy:.4f}, serving has {old.normalized_entropy:.4f}, "
            f"and may rise at most {limits.max_ne_rise:g}"
        )
    off, before = (abs(math.log(q.calibration)) for q in (new, old))
    if off > max(math.log1p(limits.max_miscalibration), before):
        reasons.append(
            f"{task}: predicts {new.calibration:.3f} of what happens, serving {old.calibration:.3f}"
            f", and may be off by a factor {1 + limits.max_miscalibration:g}"
        )
    return reasons


def _near(one: float, other: float, most: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) <= most


def require_link(serving: Path) -> None:
    """Raises PromotionError unless `serving` is a link, as the gateway watches one."""
    if not serving.is_symlink():
        raise PromotionError(
            f"{serving}: is no symbolic link; the gateway follows a link, see 'package' of its "
            "models"
        )


def promote(candidate: Path, serving: Path) -> None:
    """Point the link `serving` at the candidate, at one instant."""
    require_link(serving)
    fresh = serving.with_name(f"{serving.name}.{os.getpid()}")
    fresh.symlink_to(candidate.resolve())
    fresh.replace(serving)


def as_text(found: Comparison) -> str:
    """The comparison as a table, and the verdict's reasons."""
    lines = [f"{found.requests:,} requests", f"{'':22}{'serving':>10}{'candidate':>11}"]

    def row(name: str, old: float, new: float, form: str = "10.4f") -> None:
        lines.append(f"{name:22}{old:{form}} {new:{form}}")

    names: Mapping[str, str] = {
        "gauc_user": "GAUC by user",
        "gauc_request": "GAUC by request",
        "normalized_entropy": "NE",
        "calibration": "predicted/actual",
    }
    for task, new in found.candidate.items():
        for field, name in names.items():
            row(f"{task} {name}", getattr(found.serving[task], field), getattr(new, field))
    for scene, moved in found.shift.items():
        row(f"mean score, {scene}", moved.mean_serving, moved.mean_candidate)
        lines.append(f"PSI, {scene}: {moved.psi:.4f}")
    for quantile in ("p50", "p99"):
        old_ms, new_ms = (found.latency_ms[n][quantile] for n in ("serving", "candidate"))
        row(f"engine {quantile}, ms", old_ms, new_ms, "10.3f")
    for task, pair in found.replay.items():
        lines.append(
            f"{task} GAUC of {pair.exposures:,} exposures: served {pair.gauc_served:.6f}, scored "
            f"again {pair.gauc_again:.6f}, difference {abs(pair.gauc_served - pair.gauc_again):.1e}"
            f" (of a probability at most {pair.largest_difference:.1e})"
        )
    return "\n".join(lines)


def as_json(verdict: Mapping[str, Any]) -> str:
    """JSON in which a metric that is undefined is null: NaN is no JSON."""
    finite = json.loads(json.dumps(verdict), parse_constant=lambda _: None)
    return json.dumps(finite, indent=1) + "\n"


def _limit_options(command: Any) -> Any:
    """A flag for each threshold."""
    for name, field in reversed(Thresholds.model_fields.items()):
        assert field.default is not PydanticUndefined
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=type(field.default),
            default=field.default,
            show_default=True,
            help=field.description,
        )(command)
    return command


@click.command("promote")
@click.argument("candidate", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("serving", type=click.Path(path_type=Path))
@click.argument("logs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--kind", default="onnx-cpu", show_default=True, help="engine of both packages")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="of an engine"
)
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="compare on requests from it on, UTC  [the newest labelled day]",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON of the comparison and the verdict  [CANDIDATE.promotion.json]",
)
@click.option("--dry-run", is_flag=True, help="compare only, move nothing")
@_limit_options
def promote_command(
    candidate: Path,
    serving: Path,
    logs: Path,
    kind: EngineKind,
    threads: int,
    since: datetime | None,
    report: Path | None,
    dry_run: bool,
    **limits: float,
) -> None:
    """Let CANDIDATE serve in place of SERVING if it does well on the newest day of LOGS.

    SERVING is the link that the gateway follows. The candidate must not have been trained on that
    day. Exits with 1, the link untouched, and every reason if it is refused.
    """
    thresholds = Thresholds.model_validate(limits)
    try:
        if not dry_run:
            require_link(serving)
        new, old = open_package(candidate), open_package(serving)
        data, _ = read_logs(logs, old.config.features)
        day = _from(data, newest_labelled_day(data) if since is None else _epoch_ms(since))
        found = compare(new, old, kind, day, read_served(logs, day), threads)
    except (EngineError, LogError) as error:
        raise click.ClickException(str(error)) from None
    reasons = objections(found, thresholds)
    click.echo(as_text(found))
    report = report or candidate.with_name(f"{candidate.name}.promotion.json")
    verdict = {
        "promoted": not reasons and not dry_run,
        "reasons": reasons,
        "candidate_version": new.config.version,
        "serving_version": old.config.version,
        "thresholds": thresholds.model_dump(),
        **asdict(found),
    }
    report.write_text(as_json(verdict))
    if reasons:
        for reason in reasons:
            click.echo(f"refused: {reason}", err=True)
        raise SystemExit(1)
    if not dry_run:
        promote(candidate, serving)
        click.echo(f"{serving} -> {candidate.resolve()}: {new.config.version}")


def _from(logs: Logs, since_ms: int) -> Logs:
    chosen = logs.requests.context["time_ms"] >= since_ms
    if not chosen.any():
        raise PromotionError(f"the logs hold no request at or after {since_ms} ms")
    return select_requests(logs, chosen)


def _epoch_ms(when: datetime) -> int:
    return int(when.replace(tzinfo=UTC).timestamp() * 1000)
