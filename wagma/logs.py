"""What wagma says through Python's `logging`: the logger is "wagma", and every record knows its rank.

A library writes nothing unasked: `import wagma` adds a handler that drops everything. `log_to_stderr` shows it; a program with logging of
its own configures the logger as any other, and adds `RankFilter` to the handlers whose format has `%(rank)s`: its own lines then have the
rank, too.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import MutableMapping
from typing import Any

NAME = "wagma"
FORMAT = "%(asctime)s wagma: rank %(rank)s: %(levelname)s: %(message)s"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_THREAD = "rank "  # the ranks of wagma.real.local are threads with such names

logging.getLogger(NAME).addHandler(logging.NullHandler())


class RankLogger(logging.LoggerAdapter[logging.Logger]):
    """The logger "wagma" for one rank: its records have the attribute `rank`."""

    def __init__(self, rank: int) -> None:
        super().__init__(logging.getLogger(NAME), {"rank": rank})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the rank."""
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **(self.extra or {})}
        return msg, kwargs


class RankFilter(logging.Filter):
    """For a handler: gives every record a `rank`, "-" if the process is none. It keeps all records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the rank, unless it is there."""
        if not hasattr(record, "rank"):
            name = record.threadName or threading.current_thread().name
            own = name.removeprefix(_THREAD) if name.startswith(_THREAD) else None
            record.rank = own or _announced()
        return True


def _announced() -> str:
    from wagma.real.launching.announced import announced  # light, but of no use to programs that log nothing

    found = announced()
    return "-" if found is None else str(found.rank)


def log_to_stderr(level: int | str = "INFO") -> logging.Handler:
    """Write what wagma logs to standard error, a line each, with time, rank and level. Returns the handler; again: sets the level only.

    level: "DEBUG" (each sync), "INFO" (beginning and end), "WARNING" (a rank that waits far longer than its iterations take), "ERROR", or
    a number of `logging`. Raises InputError for anything else.
    """
    from wagma.errors import InputError

    given: object = level
    if not (given in LEVELS if isinstance(given, str) else isinstance(given, int) and not isinstance(given, bool)):
        raise InputError(f"level = {level!r}: must be one of {', '.join(LEVELS)}, or a number of logging's")
    logger = logging.getLogger(NAME)
    logger.setLevel(level)
    for known in logger.handlers:
        if isinstance(known, _StandardError):
            return known
    handler = _StandardError()
    handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
    handler.addFilter(RankFilter())
    logger.addHandler(handler)
    return handler


class _StandardError(logging.Handler):
    """Writes to what is standard error at that time, so that a program may exchange it."""

    def emit(self, record: logging.LogRecord) -> None:
        """One write a line: lines of several ranks do not mix."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)
