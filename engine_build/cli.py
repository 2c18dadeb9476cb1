"""The commands `mtgr build` and `mtgr verify`."""

from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from engine_build import verify as verification
from engine_build.build import DEFAULTS, BuildOptions
from engine_build.package import BUILDERS, build_package
from engine_build.runtime.engine import EngineError
from engine_build.runtime.manifest import EngineKind
from model_def.checkpoint import CheckpointError

FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("checkpoint", type=DIRECTORY)
@click.argument("package", type=DIRECTORY)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(sorted(BUILDERS)),
    multiple=True,
    default=["onnx-cpu"],
    show_default=True,
    help="Engine to build; may be repeated.",
)
@click.option(
    "--precision",
    type=click.Choice(["bfloat16", "float16"]),
    default=DEFAULTS.precision,
    show_default=True,
    help="Of a GPU engine's weights.",
)
@click.option(
    "--batch-requests",
    type=click.IntRange(1),
    default=DEFAULTS.batch_requests,
    show_default=True,
    help="Requests that a GPU engine takes in one run, at most.",
)
@click.option(
    "--max-candidates",
    type=click.IntRange(1),
    default=DEFAULTS.max_candidates,
    show_default=True,
    help="Candidates of one request that a GPU engine takes, at most.",
)
@click.option("--plugin-library", type=FILE, help="TensorRT plugins; see plugins/README.md.")
@click.option("--timing-cache", type=FILE, help="Read and written, to make the next build short.")
@click.option(
    "--traffic",
    type=FILE,
    help="CSV of batch sizes (requests, lifelong, realtime, candidates) for cuda-graph's buckets.",
)
def build(checkpoint: Path, package: Path, kinds: tuple[EngineKind, ...], **options: Any) -> None:
    """Build PACKAGE, ready to serve, from CHECKPOINT, a directory that 'mtgr train' wrote.

    Each engine is verified against PyTorch before the package appears. A PACKAGE of the same
    checkpoint keeps its other engines.
    """
    with tqdm(total=2 + 2 * len(kinds), bar_format="{l_bar}{bar}| {elapsed} {desc}") as bar:

        def progress(step: str) -> None:
            bar.set_description_str(step)
            bar.update()

        try:
            build_package(checkpoint, package, kinds, BuildOptions(**options), progress)
        except (EngineError, CheckpointError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"{', '.join(kinds)}: needs {error.name}; pip install 'mtgr-serving[gpu]' "
                "on a machine with an NVIDIA GPU"
            ) from error
    click.echo(f"{package}: {', '.join(kinds)}")


@click.command()
@click.argument("package", type=DIRECTORY)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(sorted(BUILDERS)),
    multiple=True,
    help="Engine to verify; may be repeated.  [default: all of the package]",
)
@click.option("--requests", default=20, show_default=True, help="Random requests to score.")
@click.option("--seed", default=0, show_default=True, help="Of the random requests.")
def verify(package: Path, kinds: tuple[EngineKind, ...], requests: int, seed: int) -> None:
    """Compare every engine of PACKAGE with PyTorch; fail if one differs beyond its tolerance."""
    try:
        verdicts = list(verification.verify(package, kinds, requests, seed))
    except (EngineError, CheckpointError) as error:
        raise click.ClickException(str(error)) from error
    for verdict in verdicts:
        word = "passed" if verdict.passed else "FAILED"
        click.echo(
            f"{verdict.kind}: {word}, largest score difference {verdict.difference:.2g} "
            f"(at most {verdict.tolerance:g})"
        )
    if not all(verdict.passed for verdict in verdicts):
        raise SystemExit(1)
