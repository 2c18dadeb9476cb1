"""`mtgr evaluate`: how well a checkpoint ranks and is calibrated, as text, JSON or a page."""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click
import numpy as np

from model_def.cli_shared import (
    Existing,
    Utc,
    epoch_ms,
    pack_all,
    read,
    threads_option,
    use_threads,
    utc,
)
from model_def.data.logs import Logs
from model_def.data.samples import task_labels, time_split
from model_def.data.truth import read_truth


@click.command()
@click.argument("checkpoint", type=Existing)
@click.argument("logs", type=Existing)
@click.option(
    "--since", type=Utc, help="score requests from it on, UTC; default: where training ended"
)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option(
    "--report",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="write an HTML page: the metrics, calibration, by scene and history, training curves",
)
@threads_option
def evaluate(
    checkpoint: Path,
    logs: Path,
    since: datetime | None,
    as_json: bool,
    page: Path | None,
    threads: int,
) -> None:
    """Score the exposures of LOGS that CHECKPOINT was not trained on: AUC, GAUC, NE, calibration.

    For simulated logs the true probabilities are scored too: the best that can be reached.
    """
    from model_def.checkpoint import CheckpointError, load
    from model_def.curves import FILE, read_curves
    from model_def.evaluate import Evaluation, as_text, predict, report, slices
    from model_def.report_page import evaluation_page

    use_threads(threads)
    try:
        loaded = load(checkpoint)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None
    data = read(logs, loaded.config.features)
    since_ms = loaded.training["until_ms"] if since is None else epoch_ms(since)
    future = time_split(data, since_ms)[1]
    if not len(future.requests.user_id):
        raise click.ClickException(f"{logs}: no requests from {utc(since_ms)} on; see --since")
    tasks = loaded.config.model.tasks
    labels, samples = task_labels(future.requests, tasks), pack_all(future)
    probabilities = predict(loaded.model, samples)
    truth = true_probabilities(logs, data, since_ms, tasks)
    found = Evaluation(
        version=loaded.config.version,
        since=utc(since_ms),
        held_out=report(tasks, future.requests, labels, probabilities),
        best_reachable=[] if truth is None else report(tasks, future.requests, labels, truth),
        slices=slices(tasks, future.requests, samples, labels, probabilities),
    )
    if page is not None:
        curves = checkpoint / FILE
        page.write_text(evaluation_page(found, read_curves(curves) if curves.is_file() else {}))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    click.echo(f"from {found.since}:\n{as_text(found.held_out)}")
    if found.best_reachable:
        click.echo(f"best reachable, by the true probabilities:\n{as_text(found.best_reachable)}")


def true_probabilities(
    directory: Path, data: Logs, since_ms: int, tasks: tuple[str, ...]
) -> np.ndarray | None:
    """The truth [N, tasks] of the exposures from a time on; None for logs not simulated."""
    truth = read_truth(directory, data)
    if truth is None:
        return None
    rows = np.repeat(data.requests.context["time_ms"] >= since_ms, data.requests.candidate_counts)
    return truth[rows][:, [("ctr", "ctcvr").index(task) for task in tasks]]
