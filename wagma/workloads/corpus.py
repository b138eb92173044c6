"""Real text that is on every machine: the functions of the Python standard library's own sources, as bytes.

A function (a method, too) is a sequence of its natural length. Which functions there are, and how long, depends on the Python version: the
same bits come from the same installation only. The vocabulary is the 256 bytes, so that no model depends on the text.
"""

from __future__ import annotations

import re
import sysconfig
from functools import lru_cache
from pathlib import Path

from wagma.errors import MissingDependencyError

#: A sequence is cut here. About one function in forty is longer.
LONGEST = 2048
SHORTEST = 32
LEAST = 1_000  # functions; any installation with its sources has several thousand

_DEFINITION = re.compile(rb"( *)(?:async +)?def +\w")
_INDENT = re.compile(rb" *(?=[^ \t\r\n\f])")


@lru_cache(maxsize=1)
def functions() -> tuple[bytes, ...]:
    """All functions of the top-level modules, in the order of module names and lines, cut at LONGEST bytes; those below SHORTEST left out.

    Raises MissingDependencyError where Python comes without its sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found = [one[:LONGEST] for path in sorted(folder.glob("*.py")) for one in split(path.read_bytes()) if len(one) >= SHORTEST]
    if len(found) < LEAST:
        raise MissingDependencyError(
            f"the workload text reads the standard library's sources: {len(found)} functions in {folder}, there must be at least "
            f"{LEAST:,}; use a Python that comes with its sources"
        )
    return tuple(found)


def split(source: bytes) -> list[bytes]:
    """The functions of a module: each from its `def` to the last line that is indented deeper. A function within another stays in it."""
    found: list[bytes] = []
    body: list[bytes] = []
    own = 0  # indentation of the function that `body` is of
    for line in source.splitlines(keepends=True):
        indent = _INDENT.match(line)
        if body and (indent is None or indent.end() > own):
            body.append(line)
            continue
        if body:
            found.append(b"".join(body).rstrip() + b"\n")
            body = []
        definition = _DEFINITION.match(line)
        if definition is not None:
            own, body = definition.end(1), [line]
    if body:
        found.append(b"".join(body).rstrip() + b"\n")
    return found
