"""Log lines that cannot be forged and cannot flood."""

import logging
from time import monotonic

EVERY_S = 10.0
LONGEST = 128


def safe(text: str) -> str:
    """A caller's id as printable ASCII of bounded length: no newline, no escape code survives."""
    return ascii(text[:LONGEST])[1:-1]


class Seldom(logging.Filter):
    """Passes a message once each `every_s` seconds, then says how many like it were held back.

    A failing engine fails every request; the metrics count them, the log explains one.
    """

    def __init__(self, every_s: float = EVERY_S):
        super().__init__()
        self._every_s = every_s
        self._held: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written; alike are those of one template."""
        if record.levelno < logging.WARNING:
            return True
        now = monotonic()
        last, held = self._held.get(record.msg, (-self._every_s, 0))
        if now - last < self._every_s:
            self._held[record.msg] = (last, held + 1)
            return False
        self._held[record.msg] = (now, 0)
        if held:
            record.msg = f"{record.msg} ({held} more like this before)"
        return True


class OneRecord(logging.Formatter):
    """A record's further lines (a traceback) are indented, and hold nothing but printable text:
    no part of a message can look like a record of its own, whoever wrote it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        lines = super().format(record).splitlines()
        return "\n    ".join("".join(map(_printable, line)) for line in lines)


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def configure() -> None:
    """Log to standard error, warnings of one kind seldom."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneRecord("%(asctime)s %(levelname)s %(name)s %(message)s"))
    handler.addFilter(Seldom())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
