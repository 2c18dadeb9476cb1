"""The gateway's commands: serve, load-features, rank."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic_core import PydanticUndefined

from service.settings import PREFIX, Settings, load_settings


def setting_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for every setting, its help and unit taken from the setting itself."""
    for name, field in reversed(Settings.model_fields.items()):
        default = "" if field.default in (PydanticUndefined, "", {}) else f"  [{field.default}]"
        command = click.option(
            f"--{name.replace('_', '-')}", name, help=f"{field.description}{default}"
        )(command)
    return command


@click.command(
    epilog=f"Every flag is also an environment variable: --redis-url is {PREFIX}REDIS_URL."
)
@click.argument("package", required=False, type=click.Path(path_type=Path))
@setting_flags
def serve(package: Path | None, **flags: str | None) -> None:
    """Serve packages over HTTP. PACKAGE is short for a --models of that one package."""
    from service.errors import BadSetting
    from service.serve import run

    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        if package is not None:
            if "models" in given:
                raise BadSetting("PACKAGE and --models exclude each other")
            given["models"] = {"default": {"package": package}}
        run(load_settings(given))
    except BadSetting as fault:
        raise click.ClickException(str(fault)) from None
