"""Reading one table of a scenario key by key, so that every complaint names source, key, value and what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from wagma.errors import InputError

_MISSING: Any = object()

#: Of any number that has no limit of its own: sums and products of such numbers stay finite, and nanoseconds within 63 bits.
LARGEST = 1e12


class Section:
    """A table of a TOML file with its dotted name. Take each known key once, then `finish`: what is left is unknown."""

    def __init__(self, source: str, name: str, table: Any) -> None:
        self.source = source
        self.name = name
        if not isinstance(table, dict):
            raise InputError(f"{source}: {name} = {table!r}: must be a table")
        self._table = dict(table)
        self._known: list[str] = []

    def fail(self, key: str, value: Any, allowed: str) -> NoReturn:
        """Raise the one-line complaint."""
        raise InputError(f"{self.source}: {self._dotted(key)} = {_show(value)}: {allowed}")

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """The raw value of `key`; it must be there unless there is a default."""
        self._known.append(key)
        value = self._table.pop(key, default)
        if value is _MISSING:
            raise InputError(f"{self.source}: {self._dotted(key)}: missing")
        return value

    def string(self, key: str, default: Any = _MISSING) -> str:
        """A non-empty string."""
        value = self.take(key, default)
        if not isinstance(value, str) or (not value and value != default):
            self.fail(key, value, "must be a non-empty string")
        return value

    def choice(self, key: str, allowed: Sequence[str], default: Any = _MISSING) -> str:
        """One of `allowed`."""
        value = self.take(key, default)
        if value not in allowed:
            self.fail(key, value, f"must be one of {', '.join(allowed)}")
        return str(value)

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.fail(key, value, "must be true or false")
        return value

    def integer(self, key: str, minimum: int, maximum: int | None = None, default: Any = _MISSING) -> int:
        """A whole number in [minimum, maximum]."""
        value = self.take(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < minimum
            or (maximum is not None and value > maximum)
        ):
            upper = "" if maximum is None else f" and at most {maximum}"
            self.fail(key, value, f"must be a whole number, at least {minimum}{upper}")
        return value

    def number(
        self, key: str, minimum: float = 0.0, maximum: float = LARGEST, default: Any = _MISSING, positive: bool = False
    ) -> float:
        """A finite number in [minimum, maximum]; `positive` excludes 0."""
        value = self.take(key, default)
        # Neither nan nor infinite, nor a whole number that no float can hold.
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        if not number or not minimum <= value <= maximum or (positive and value <= 0):
            lower = "greater than 0" if positive else f"at least {minimum:g}"
            upper = f" and at most {maximum:g}"
            self.fail(key, value, f"must be a finite number, {lower}{upper}")
        return float(value)

    def subsection(self, key: str) -> Section:
        """The table `key`, empty if absent."""
        return Section(self.source, self._dotted(key), self.take(key, {}))

    def subsections(self, key: str) -> list[Section]:
        """The array of tables `key`, empty if absent."""
        value = self.take(key, [])
        if not isinstance(value, list):
            self.fail(key, value, "must be an array of tables ([[...]])")
        return [Section(self.source, f"{self._dotted(key)}[{i}]", table) for i, table in enumerate(value)]

    def names(self) -> list[str]:
        """The keys not yet taken."""
        return list(self._table)

    def finish(self) -> None:
        """Complain of the first key that nobody took."""
        for key, value in self._table.items():
            self.fail(key, value, f"unknown key; allowed: {', '.join(self._known)}")

    def _dotted(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value).replace("'", '"')
    return text if len(text) <= 60 else text[:57] + "..."
