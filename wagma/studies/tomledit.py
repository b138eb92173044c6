"""Setting values in the text of a TOML file, so that its comments stay where they are.

Understands what scenario files look like: `[table]`, `[[array of tables]]`, and `key = value` on a line of its own.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from wagma.errors import InputError

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_VALUE = re.compile(r"""(\s*(?:[A-Za-z0-9_-]+|"[^"]*")\s*=\s*)([^#\s]+)(.*)$""", re.DOTALL)


def set_values(text: str, values: Mapping[str, float], source: str) -> str:
    """`text` with dotted keys ("network.gap_ns", "imbalance.0.delay_s") set to numbers.

    A key that is not there is added below the header of its table. Raises InputError if the file is laid out in
    another way, so that a key cannot be placed.
    """
    lines = (text if text.endswith("\n") else text + "\n").splitlines(keepends=True)
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        _place(lines, table, name, repr(value), f"{source}: {key}")
    result = "".join(lines)
    try:
        parsed: Any = tomllib.loads(result)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: {', '.join(values)}: cannot be set in the text of this file") from error
    for key, value in values.items():
        here = parsed
        for part in key.split("."):
            here = here[int(part)] if isinstance(here, list) else here.get(part, {})
        if here != value:
            raise InputError(f"{source}: {key}: cannot be set in the text of this file; write it on a line of its own")
    return result


def _place(lines: list[str], table: str, name: str, value: str, what: str) -> None:
    """Replace or insert `name = value` in `table`."""
    here, below = "", 0 if not table else None
    counts: dict[str, int] = {}
    for number, line in enumerate(lines):
        header = _HEADER.match(line)
        if header:
            here = header[2]
            if header[1] == "[[":
                counts[here] = counts.get(here, -1) + 1
                here = f"{here}.{counts[here]}"
            if here == table:
                below = number + 1
            continue
        match = _VALUE.match(line)
        if here == table and match and match[1].split("=")[0].strip().strip('"') == name:
            lines[number] = f"{match[1]}{value}{match[3]}"
            return
    if below is None:
        raise InputError(f"{what}: this file has no table [{table}] of its own to put it in")
    lines.insert(below, f"{name} = {value}\n")
