"""`mtgr prune`: a checkpoint for serving, and what was lost by it."""

from datetime import datetime
from pathlib import Path

import click

from model_def.cli_shared import (
    Directory,
    Existing,
    Utc,
    epoch_ms,
    pack_all,
    read,
    threads_option,
    use_threads,
    utc,
)
from model_def.data.samples import task_labels, time_split


@click.command()
@click.argument("checkpoint", type=Existing)
@click.argument("logs", type=Existing)
@click.argument("out", type=Directory)
@click.option(
    "--keep",
    "share",
    type=click.FloatRange(0, 1, min_open=True),
    help="share of each table's ids to keep, the most frequent",
)
@click.option("--min-count", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--max-age-days",
    type=click.FloatRange(0),
    help="keep ids seen in training within these days of the newest",
)
@click.option("--since", type=Utc, help="score LOGS from it on, UTC; default: where training ended")
@threads_option
def prune(
    checkpoint: Path,
    logs: Path,
    out: Path,
    share: float | None,
    min_count: int,
    max_age_days: float | None,
    since: datetime | None,
    threads: int,
) -> None:
    """Write CHECKPOINT less its rare and stale ids to OUT; say what it costs on LOGS.

    Rows, bytes and GAUC are told before and after. Metadata of the ids is left out, so OUT is for
    'mtgr build', and cannot be pruned again.
    """
    from model_def.checkpoint import CheckpointError, load, save
    from model_def.evaluate import predict, report
    from model_def.prune import Rule, sizes
    from model_def.prune import prune as prune_checkpoint

    use_threads(threads)
    try:
        before = load(checkpoint)
        after = prune_checkpoint(before, Rule(share, min_count, max_age_days))
        data = read(logs, before.config.features)
        since_ms = before.training["until_ms"] if since is None else epoch_ms(since)
        future = time_split(data, since_ms)[1]
        if not len(future.requests.user_id):
            raise click.ClickException(f"{logs}: no requests from {utc(since_ms)} on; see --since")
        tasks, samples = before.config.model.tasks, pack_all(future)
        labels = task_labels(future.requests, tasks)
        reports = [
            report(tasks, future.requests, labels, predict(each.model, samples))
            for each in (before, after)
        ]
        save(out, after)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None
    after_sizes = sizes(after)
    for name, size in sizes(before).items():
        less = after_sizes[name]
        click.echo(
            f"{name}: {size.rows:,} -> {less.rows:,} rows; {size.training_bytes:,} bytes in "
            f"training, {size.serving_bytes:,} frozen -> {less.serving_bytes:,} pruned"
        )
    for old, new in zip(*reports, strict=True):
        a, b = old.gauc_request.value, new.gauc_request.value
        click.echo(f"{old.task}: GAUC by request {a:.5f} -> {b:.5f} ({b - a:+.5f})")
