"""The command `mtgr repository`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import click
from pydantic import ValidationError

from engine_build.runtime.engine import EngineError
from engine_build.runtime.manifest import EngineKind
from engine_build.triton.model_config import RepositoryError, ServingOptions
from engine_build.triton.repository import add_model, existing_plugins, launch_command

DIRECTORY = click.Path(file_okay=False, path_type=Path)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for every serving option, its help taken from the option itself."""
    for name, field in reversed(ServingOptions.model_fields.items()):
        flag = f"--{name.replace('_', '-')}"
        if not isinstance(field.default, int) or isinstance(field.default, bool):  # yes or no
            flag += f"/--no-{flag.removeprefix('--')}"
        command = click.option(
            flag, name, default=field.default, show_default=True, help=field.description
        )(command)
    return command


@click.command()
@click.argument("package", type=DIRECTORY)
@click.argument("repository", type=DIRECTORY)
@click.option("--kind", type=click.Choice(get_args(EngineKind)), default="onnx-cpu")
@click.option(
    "--plugin-library",
    type=click.Path(dir_okay=False, path_type=Path),
    help="TensorRT plugins, needed by kind tensorrt",
)
@_options
def repository(
    package: Path, repository: Path, kind: str, plugin_library: Path | None, **options: Any
) -> None:
    """Add an engine of PACKAGE to Triton's model REPOSITORY, and print the command to serve it."""
    repository.mkdir(parents=True, exist_ok=True)
    try:
        engine = cast(EngineKind, kind)
        if engine == "tensorrt":
            existing_plugins(plugin_library)
        name = add_model(repository, package, engine, ServingOptions(**options))
        command = launch_command(repository, [name], plugin_library=plugin_library)
    except (EngineError, RepositoryError) as problem:
        raise click.ClickException(str(problem)) from None
    except ValidationError as error:
        faults = [f"--{f['loc'][0]}".replace("_", "-") + f": {f['msg']}" for f in error.errors()]
        raise click.ClickException("\n".join(faults)) from None
    click.echo(command)
