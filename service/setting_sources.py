"""Where settings come from: flags over a file over the environment, and anew while serving."""

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from service.errors import BadSetting
from service.settings import PREFIX, Settings, StoreSettings

FILE = PREFIX + "SETTINGS_FILE"
ELSEWHERE = {"MTGR_SHARED"}
"""Variables of our prefix that are no settings of the gateway: where tests find their data."""

RELOADABLE = {
    "scenes",
    "default_scene",
    "max_connections",
    "read_timeout_ms",
    "drain_s",
    "max_body_bytes",
    "max_events",
    "clock_skew_ms",
    "default_deadline_ms",
    "max_deadline_ms",
    "answer_reserve_ms",
    "admin_token",
    "max_in_flight",
    "caller_header",
    "capture_slow_ms",
    "capture_every_s",
    "redis_timeout_ms",
    "redis_write_timeout_ms",
    "realtime_ttl_s",
    "label_stream_entries",
}
"""Settings that a running gateway may change; a new one is safe only once it stands here."""

JSON_FIELDS = {"models", "scenes"}
"""Settings written as JSON, in flags as in the environment."""

Wanted = TypeVar("Wanted", bound=StoreSettings)


def reloaded(old: Settings, new: Settings) -> list[str]:
    """Names of the settings that differ; raises BadSetting where one of them needs a restart."""
    changed = [n for n in Settings.model_fields if getattr(old, n) != getattr(new, n)]
    if fixed := [name for name in changed if name not in RELOADABLE]:
        also = "; engines are switched by /v1/models/{alias}/switch" * ("models" in fixed)
        raise BadSetting(f"{', '.join(fixed)}: changing it needs a restart{also}")
    return changed


def load_settings(flags: dict[str, Any], kind: type[Wanted]) -> Wanted:
    """`flags` over the settings file over the environment; raises BadSetting with a line for each
    fault."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = {name for name in os.environ if name.startswith(PREFIX)} - known - ELSEWHERE
    for name in sorted(unknown):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise BadSetting(f"{name}: no such setting{hint}")
    given = {name: _value(name, flag) for name, flag in flags.items()}
    if issubclass(kind, Settings):
        given = _read(given.get("settings_file") or os.environ.get(FILE)) | given
    try:
        return kind(**given)
    except ValidationError as error:
        lines = [
            ".".join(map(str, fault["loc"])) + ": " * bool(fault["loc"]) + fault["msg"]
            for fault in error.errors()
        ]
        raise BadSetting("\n".join(lines)) from None


def _read(path: str | None) -> dict[str, Any]:
    """Settings of a TOML file; none without a path."""
    if not path:
        return {}
    try:
        return tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise BadSetting(f"settings_file: {path}: {error}") from None


def _value(name: str, flag: Any) -> Any:
    """A flag as its setting takes it: pydantic reads text, but JSON only from the environment."""
    if name not in JSON_FIELDS or not isinstance(flag, str):
        return flag
    try:
        return json.loads(flag)
    except ValueError as error:
        raise BadSetting(f"{name}: expected JSON: {error}") from None
