"""Every way to refuse a value, as its path in the body, its problem, and what was expected."""

import re
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
from fastapi.exceptions import RequestValidationError

from model_def.rows import InvalidFeature
from service.errors import InvalidRequest
from service.logs import safe

Path = Callable[[str, int | None], str]
"""Where a feature's value stands in the body: of a name, and of a row where one is at fault."""

_OTHERWISE = {UnicodeDecodeError: "text that is not UTF-8", RecursionError: "nested too deeply"}
_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>\$.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"^Object (?P<how>missing required|contains unknown) field (?P<name>.*)$")


def refuse_body(error: Exception) -> NoReturn:
    """The decoder's complaint as path, problem and expectation."""
    if not isinstance(error, msgspec.ValidationError):
        text = _OTHERWISE.get(type(error), str(error))
        raise InvalidRequest(
            text, path="$", expected="one whole JSON or MessagePack document", type="malformed"
        ) from None
    where = _WHERE.match(str(error))
    assert where is not None  # the pattern matches any text
    what, path = where["what"].replace("`", ""), where["path"] or "$"
    if named := _FIELD.match(what):
        missing = named["how"] == "missing required"
        raise InvalidRequest(
            "missing" if missing else "unknown field",
            path=f"{path}.{named['name']}",
            expected="a value; it is required" if missing else "only fields of the schema",
            type="missing" if missing else "unknown_field",
        ) from None
    expected, _, got = what.removeprefix("Expected ").partition(", got ")
    raise InvalidRequest(
        f"got {got}" if got else what,
        path=path,
        expected=expected,
        type="wrong_type" if got else "invalid_value",
    ) from None


def refused_value(invalid: InvalidFeature, column: Any, path: Path) -> InvalidRequest:
    """An InvalidFeature as the answer's path, problem and expectation."""
    expected, _, got = invalid.expected.removeprefix("expected ").partition(", got ")
    if not got and invalid.row is not None:
        got = str(column[invalid.row])[:64]
    where = path(invalid.feature, invalid.row)
    return InvalidRequest(f"got {got}" if got else expected, path=where, expected=expected)


def refused_fields(error: RequestValidationError) -> InvalidRequest:
    """What FastAPI's own validation (of operators' endpoints) found first, in our words. Nothing of
    the caller's is repeated as it came: it may hold what no answer can be encoded with."""
    first = error.errors()[0]
    place, *names = first["loc"]
    path = ".".join(["$" if place == "body" else str(place), *(safe(str(name)) for name in names)])
    kinds = {"missing": "missing", "extra_forbidden": "unknown_field", "json_invalid": "malformed"}
    kind = kinds.get(first["type"], "invalid_value")
    return InvalidRequest("not valid", path=path, expected=safe(first["msg"]), type=kind)


def check_range(value: int, path: str, low: int, high: int, what: str = "") -> None:
    """Refuse a number outside low..high."""
    if not low <= value <= high:
        unit = f" {what}" if what else ""
        raise InvalidRequest(f"got {value}{unit}", path=path, expected=f"{low} to {high}{unit}")


def check_time(time_ms: int, path: str, latest_ms: int) -> None:
    """Refuse a time before 1970 or further ahead than clocks differ."""
    if not 0 <= time_ms <= latest_ms:
        raise InvalidRequest(
            f"got {time_ms}",
            path=path,
            expected=f"milliseconds since 1970, at most {latest_ms} (our clock and allowed skew)",
        )
