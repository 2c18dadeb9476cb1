"""What the commands on logs share: options, reading and packing, times.

PyTorch is imported when a command runs: first its threads must be told to sleep while they wait,
or on busy cores they spend more time waiting than working.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from tqdm import tqdm

from model_def.data.logs import LogError, Logs
from model_def.data.parquet import read_logs, read_schema
from model_def.data.samples import TrainingSample, training_samples
from model_def.differences import SchemaMismatch, check_schema
from model_def.schema import FeatureSchema

HELD_OUT = 0.1
"""Share of the requests, the last by time, that are held out unless a date is given."""

Command = TypeVar("Command", bound=Callable[..., Any])
Utc = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])
Directory = click.Path(file_okay=False, path_type=Path)
Existing = click.Path(exists=True, file_okay=False, path_type=Path)


def threads_option(command: Command) -> Command:
    """`--threads`."""
    return click.option(
        "--threads",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="threads of PyTorch: more help models above tiny, and hurt on busy cores; results "
        "are equal bit for bit only for an equal number",
    )(command)


def use_threads(threads: int) -> None:
    """Limit PyTorch to `threads`, which sleep rather than spin; before its first import."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(threads)


def read(directory: Path, schema: FeatureSchema | None = None, *, cross: bool = True) -> Logs:
    """The logs of a directory; what was rejected is told and listed in rejects.csv beside them.

    With a model's `schema`, logs of another schema are refused, with the difference listed; not
    `cross` leaves the cross features out.
    """
    click.echo(f"reading {directory}", err=True)
    try:
        own = read_schema(directory)
        if schema is not None:
            check_schema(schema, own, directory)
        chosen = schema or (own if cross else own.without_cross())
        logs, rejects = read_logs(directory, chosen)
    except (LogError, SchemaMismatch) as error:
        raise click.ClickException(str(error)) from None
    if len(rejects):
        rejects.write(directory / "rejects.csv")
        for (file, reason), rows in rejects.counts.most_common():
            click.echo(f"rejected {rows:,} rows of {file}: {reason}", err=True)
        click.echo(f"rejected {len(rejects):,} rows: see {directory / 'rejects.csv'}", err=True)
    return logs


def pack_all(logs: Logs, *, as_served: bool = False) -> list[TrainingSample]:
    """Every sample of the logs; `as_served`: one for each request."""
    samples = training_samples(logs, as_served=as_served)
    return list(tqdm(samples, unit="sample", desc="packing"))


def default_split(logs: Logs) -> int:
    """The time before which all but HELD_OUT of the requests were made, ms."""
    times = np.sort(logs.requests.context["time_ms"])
    if not len(times):
        raise click.ClickException("the logs hold no requests")
    return int(times[int(len(times) * (1 - HELD_OUT))])


def epoch_ms(when: datetime) -> int:
    """Milliseconds since 1970 of a time in UTC."""
    return int(when.replace(tzinfo=UTC).timestamp() * 1000)


def utc(at_ms: int) -> str:
    """A time as its options take it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
