"""`mtgr replay`: run a captured request again, and compare with what was served."""

from pathlib import Path

import click
import numpy as np

from engine_build.runtime.capture import Capture, device_of, read_about, read_capture
from engine_build.runtime.engine import Engine, EngineError
from engine_build.runtime.golden import largest_difference
from engine_build.runtime.manifest import MANIFEST, Precision, sha256_of
from engine_build.runtime.package import open_package
from engine_build.runtime.tensors import OFFSET_ROWS
from model_def.batch import merge
from model_def.schema import FeatureSchema

ALONE: dict[Precision, float] = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-3}
"""Largest difference between a request in its batch and the same request alone."""


@click.command()
@click.argument("capture", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--package",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Replay on this package.  [default: the one that served]",
)
def replay(capture: Path, package: Path | None) -> None:
    """Run a captured request again, in its batch and alone, and compare the scores.

    On the engine and the device that served, the batch must be equal bit for bit, and the request
    alone within 1e-5 (2e-3 in 16 bit); otherwise the exit status is 1. Other packages of the same
    schema are compared, not judged.
    """
    try:
        about = read_about(capture)
        opened = open_package(package or about.origin.package)
        kept = read_capture(capture, opened.config.features)
        engine = opened.load_engine(about.origin.engine, threads=about.origin.threads)
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    origin = about.origin
    same_engine = sha256_of(opened.path / origin.engine / MANIFEST) == origin.manifest_sha256
    same_device = origin.device == device_of(origin.engine)
    precision = opened.manifests[origin.engine].precision
    click.echo(story(kept))
    passed = compare(kept, engine, opened.config.features, ALONE[precision], exact=same_device)
    if not same_engine:
        click.echo(f"{opened.path}: another engine than the one that served; compared, not judged")
    elif not same_device:
        click.echo(f"served on {origin.device}; here bits may differ")
    if same_engine and not passed:
        raise SystemExit(1)


def story(kept: Capture) -> str:
    """What was captured, in words."""
    about, origin = kept.about, kept.about.origin
    batch = kept.requests[about.position]
    counts = ", ".join(
        f"{int(batch.arrays[offsets][-1])} {segment}" for offsets, segment in OFFSET_ROWS.items()
    )
    bucket = "" if about.bucket is None else f", bucket {about.bucket!r}"
    stages = ", ".join(f"{stage} {taken:.1f}" for stage, taken in about.stages_ms.items())
    return (
        f"request {about.request_id!a}: {about.why}, ranked by {about.ranked_by}\n"
        f"{origin.version}, {origin.engine} ({origin.backend}) on {origin.device}\n"
        f"tokens: {counts}; request {about.position + 1} of {about.requests} in its batch{bucket}\n"
        f"milliseconds: {stages}"
    )


def compare(
    kept: Capture, engine: Engine, schema: FeatureSchema, tolerance: float, *, exact: bool
) -> bool:
    """Print the differences of the batch and of the request alone; whether they are within what
    is promised, which for the batch is nothing at all where `exact`."""
    together = engine.run(merge(kept.requests, schema))
    alone = engine.run(kept.requests[kept.about.position])
    served = kept.tasks or together.tasks
    equal = all(np.array_equal(together.tasks.get(t, ()), v) for t, v in served.items())
    of_batch = largest_difference(together, served)
    of_one = largest_difference(alone, {task: v[kept.rows] for task, v in served.items()})
    if kept.tasks:
        verdict = "equal bit for bit" if equal else f"largest difference {of_batch:.2g}"
        click.echo(f"batch: {verdict}")
    else:
        click.echo("batch: scored now; the engine gave no scores then")
    click.echo(f"alone: largest difference {of_one:.2g} (at most {tolerance:g})")
    return (equal or not exact) and max(of_one, of_batch) <= tolerance
