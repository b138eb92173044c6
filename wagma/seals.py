"""Seals: each line of a trace ends in a digest of itself and of all lines before it, so that a change is found, and in which line.

A line is a JSON object whose last key is `seal`. A seal is no signature: whoever changes a line on purpose can seal it again; what it finds
is a bit that was flipped, a line that was lost, doubled or moved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from wagma.errors import InputError

_SEALED = re.compile(r'(.*),"seal":"([0-9a-f]{16})"\}', re.DOTALL)


def _seal(before: str, text: str) -> str:
    """16 hexadecimal digits for a line without its seal, after lines whose last seal is `before`."""
    return blake2b((before + text).encode(), digest_size=8).hexdigest()


def sealed(lines: Iterable[str]) -> Iterator[str]:
    """JSON objects, one a line, each with its seal."""
    before = ""
    for line in lines:
        text = line.removesuffix("}")
        before = _seal(before, text)
        yield f'{text},"seal":"{before}"}}'


class Seals:
    """Checks the lines of one file, in order. holds: whether they have seals; None: no line was seen."""

    def __init__(self, source: str) -> None:
        self.holds: bool | None = None
        self._source = source
        self._before = ""

    def check(self, number: int, line: str) -> None:
        """Raise InputError if the line, the number-th, is not what was written there. Files without any seal are not checked."""
        where = f"{self._source}:{number}"
        match = _SEALED.fullmatch(line)
        if self.holds is None:
            self.holds = match is not None
        if match is None:
            if self.holds:
                raise InputError(f"{where}: the line has no seal, and those before it have: it is not what was written")
            return
        text, seal = match.groups()
        if not self.holds:
            raise InputError(
                f"{self._source}:{number - 1}: the line has no seal, and the one after it has: it is not what was written"
            )
        self._before = _seal(self._before, text)
        if seal != self._before:
            raise InputError(f"{where}: its seal is {seal}, expected {self._before}: the line is not what was written there")
