"""The commands `mtgr build` and `mtgr verify`."""

from pathlib import Path
from typing import cast

import click
from tqdm import tqdm

from engine_build import verify as verification
from engine_build.package import BUILDERS, build_package
from engine_build.runtime.engine import EngineError
from engine_build.runtime.manifest import EngineKind
from model_def.checkpoint import CheckpointError

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
def build(checkpoint: Path, package: Path, kinds: tuple[str, ...]) -> None:
    """Build PACKAGE, ready to serve, from CHECKPOINT, a directory that 'mtgr train' wrote.

    Each engine is verified against PyTorch before the package appears. A PACKAGE of the same
    checkpoint keeps its other engines.
    """
    with tqdm(total=2 + 2 * len(kinds), bar_format="{l_bar}{bar}| {elapsed} {desc}") as bar:

        def progress(step: str) -> None:
            bar.set_description_str(step)
            bar.update()

        try:
            build_package(checkpoint, package, cast(tuple[EngineKind, ...], kinds), progress)
        except (EngineError, CheckpointError, ValueError) as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"{package}: {', '.join(kinds)}")


@click.command()
@click.argument("package", type=DIRECTORY)
@click.option("--requests", default=20, show_default=True, help="Random requests to score.")
@click.option("--seed", default=0, show_default=True, help="Of the random requests.")
def verify(package: Path, requests: int, seed: int) -> None:
    """Compare every engine of PACKAGE with PyTorch; fail if one differs beyond its tolerance."""
    try:
        verdicts = list(verification.verify(package, requests, seed))
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
