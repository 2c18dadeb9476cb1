"""`mtgr simulate` and `train`: logs -> checkpoint."""

import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from model_def.cli_shared import (
    Directory,
    Existing,
    Utc,
    default_split,
    epoch_ms,
    pack_all,
    read,
    threads_option,
    use_threads,
    utc,
)
from model_def.config import PRESETS, TOKEN_GROUPS, ModelConfig, PackageConfig
from model_def.data.bodies import write_traffic
from model_def.data.parquet import write_logs
from model_def.data.samples import task_labels, time_split
from model_def.data.simulate import simulate as simulate_logs
from model_def.data.simulator import Marketplace
from model_def.data.truth import write_truth


@click.command()
@click.argument("out", type=Directory)
@click.option("--days", type=click.IntRange(1), default=8, show_default=True)
@click.option("--users", type=click.IntRange(1), default=800, show_default=True)
@click.option("--items", type=click.IntRange(24), default=800, show_default=True)
@click.option(
    "--candidates",
    type=click.IntRange(1),
    default=24,
    show_default=True,
    help="items shown in each request",
)
@click.option("--start", type=Utc, default="2026-01-05", show_default=True, help="first day, UTC")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def simulate(
    out: Path, days: int, users: int, items: int, candidates: int, start: datetime, seed: int
) -> None:
    """Write logs of a simulated food-delivery marketplace to the directory OUT.

    Beside the logs stand the true probabilities (truth.parquet) and requests for the load test
    (traffic.jsonl).
    """
    if candidates > items:
        raise click.BadParameter(f"expected at most --items, {items}", param_hint="--candidates")
    market = Marketplace(users, items, seed)
    with tqdm(total=days, unit="day", desc="simulating") as bar:

        def progress(day: int, days: int) -> None:
            bar.update()

        simulated = simulate_logs(market, epoch_ms(start), days, candidates, seed, progress)
    write_logs(out, simulated.logs)
    write_truth(out, simulated.logs, simulated.truth)
    write_traffic(out / "traffic.jsonl", simulated.logs)
    requests = simulated.logs.requests
    click.echo(
        f"{out}: {len(requests.user_id):,} requests, {len(requests.click):,} exposures, "
        f"CTR {requests.click.mean():.3f}, CTCVR {requests.order.mean():.4f}"
    )


@click.command()
@click.argument("logs", type=Existing)
@click.argument("out", type=Directory)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="tiny", show_default=True)
@click.option("--tasks", default="ctr,ctcvr", show_default=True, help="tasks, by comma")
@click.option("--no-cross", is_flag=True, help="leave the cross features out, for ablation")
@click.option(
    "--groups",
    type=click.Choice(list(TOKEN_GROUPS)),
    default="paper",
    show_default=True,
    help="GroupLN groups; one: a plain layer norm, for ablation",
)
@click.option(
    "--mask",
    type=click.Choice(["dynamic", "causal"]),
    default="dynamic",
    show_default=True,
    help="causal: the order of the sequence alone, which leaks, for ablation",
)
@click.option(
    "--embedding-source",
    type=click.Choice(["engine", "host"]),
    default="engine",
    show_default=True,
    help="where a serving engine's embeddings are gathered; host: for tables beyond its memory",
)
@click.option("--until", type=Utc, help="train on requests before it, UTC; default: nine tenths")
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--learning-rate", type=float, default=3e-3, show_default=True, help="Adam's peak")
@click.option(
    "--warm-up",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    help="share of the steps until the peak",
)
@click.option(
    "--embedding-std",
    type=float,
    default=1.0,
    show_default=True,
    help="spread of the embeddings at the start",
)
@click.option(
    "--branch-gain",
    type=float,
    default=0.3,
    show_default=True,
    help="scales W_o at the start; below 1 the layers begin close to the identity",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="tokens of a batch, at most",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="batches of an optimizer step",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="of the layers' products",
)
@click.option(
    "--min-id-count",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="occurrences of an id before it has an embedding of its own",
)
@click.option("--max-ids", type=click.IntRange(1), help="of a table; the stalest give way")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--version", default=None, help="model version; default: from the time of training")
@click.option(
    "--save-every",
    type=click.IntRange(1),
    default=250,
    show_default=True,
    help="steps between saves, from which the same command goes on after a kill",
)
@click.option("--device", default="cpu", show_default=True, help="of PyTorch: cpu, cuda, cuda:1")
@threads_option
def train(
    logs: Path,
    out: Path,
    preset: str,
    tasks: str,
    no_cross: bool,
    groups: str,
    mask: str,
    embedding_source: str,
    until: datetime | None,
    version: str | None,
    save_every: int,
    device: str,
    threads: int,
    **options: Any,
) -> None:
    """Train a model on LOGS up to a time, report on what follows, save the checkpoint OUT.

    Until it ends, OUT.training holds its curves and its last saved state; the same command again
    goes on from there, to the same weights.
    """
    from model_def.checkpoint import Checkpoint, CheckpointError, check_replaceable, save
    from model_def.curves import FILE
    from model_def.evaluate import as_text, predict, report
    from model_def.options import TrainingOptions
    from model_def.train import plan
    from model_def.train import train as train_model

    use_threads(threads)
    data = read(logs, cross=not no_cross)
    until_ms = default_split(data) if until is None else epoch_ms(until)
    past, future = time_split(data, until_ms)
    directory = out.with_name(f"{out.name}.training")
    try:
        check_replaceable(out)
        config = ModelConfig.model_validate(
            PRESETS[preset].model_dump()
            | {
                "tasks": tuple(tasks.split(",")),
                "token_groups": TOKEN_GROUPS[groups],
                "mask": mask,
                "embedding_source": embedding_source,
            }
        )
        chosen = TrainingOptions(**options)
        samples = pack_all(past)
        with tqdm(total=len(plan(samples, chosen)), unit="step", desc="training") as bar:

            def progress(step: int, loss: float) -> None:
                bar.n = step - 1
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()

            trained = train_model(
                config,
                data.schema,
                samples,
                task_labels(past.requests, config.tasks),
                chosen,
                progress,
                directory=directory,
                save_every=save_every,
                device=device,
            )
        reports = []
        if len(future.requests.user_id):
            labels = task_labels(future.requests, config.tasks)
            probabilities = predict(trained.model, pack_all(future))
            reports = report(config.tasks, future.requests, labels, probabilities)
            click.echo(f"held out, from {utc(until_ms)}:\n{as_text(reports)}")
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        package = PackageConfig(
            version=version or f"{data.schema.name}-{now}", model=config, features=data.schema
        )
        training = {
            "until_ms": until_ms,
            "options": chosen.model_dump(),
            "exposures": len(past.requests.click),
            "steps": len(trained.losses),
            "held_out": [asdict(r) for r in reports],
        }
        made = Checkpoint(package, trained.model, trained.id_tables, training, trained.uses)
        save(out, made, directory / FILE)
        shutil.rmtree(directory)
    except (CheckpointError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{out}: version {package.version}")
