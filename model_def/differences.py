"""What differs between two saved settings, field by field, for messages that refuse one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model_def.schema import FeatureSchema

ABSENT = "nothing"

FREE = ("transform", "default")
"""Of a feature: a model brings its own; logs give the raw value."""


class SchemaMismatch(ValueError):
    """Logs that do not hold what a model reads; the message lists each difference."""


def check_schema(model: FeatureSchema, logs: FeatureSchema, place: Path) -> None:
    """Raise SchemaMismatch unless `logs`, of `place`, hold every feature of `model`, alike."""
    wanted, given = _read_by(model), _read_by(logs)
    common = {
        group: {name: given[group][name] for name in features if name in given[group]}
        for group, features in wanted.items()
    }
    found = list(differences(wanted, common))
    for cap in ("lifelong_cap", "realtime_cap"):
        if getattr(model, cap) > getattr(logs, cap):
            found.append(f"{cap}: {getattr(model, cap)} there, only {getattr(logs, cap)} here")
    if found:
        listed = "\n  ".join(found)
        raise SchemaMismatch(
            f"{place}: of another schema than the checkpoint; there the checkpoint, here the "
            f"logs:\n  {listed}"
        )


def differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """Lines `path: X there, Y here` of two JSON values; lists of named things go by name."""
    if isinstance(there, list) and isinstance(here, list):
        there, here = _by_name(there), _by_name(here)
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(k for k in here if k not in there)]:
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(there.get(key, ABSENT), here.get(key, ABSENT), inner)
    elif there != here:
        yield f"{path}: {_told(there)} there, {_told(here)} here"


def _read_by(schema: FeatureSchema) -> dict[str, dict[str, Any]]:
    """Features by group and name, without what does not change their bytes."""
    groups = schema.model_dump(mode="json", include={"profile", "behaviour", "item", "context"})
    groups["item"] += schema.model_dump(mode="json", include={"cross"})["cross"]
    return {
        group: {
            feature["name"]: {k: v for k, v in feature.items() if k not in FREE}
            for feature in features
        }
        for group, features in groups.items()
    }


def _by_name(values: list[Any]) -> dict[str, Any]:
    return {
        str(value["name"]) if isinstance(value, dict) and "name" in value else str(i): value
        for i, value in enumerate(values)
    }


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return f"a {value['kind']}" if "kind" in value else "some"
    return str(value)
