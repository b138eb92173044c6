"""Runs the Python programs that it is given one after the other, each with names of its own: they share only what they import.

Most of such a program's time goes into importing torch, and a job of several ranks pays for that on each of them.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Arguments: files. Prints the name of each that has come to its end."""
    for path in map(Path, sys.argv[1:]):
        code = compile(path.read_text(), path, "exec")  # with its file, a traceback shows the line
        exec(code, {"__name__": "__main__"})  # noqa: S102
        print(f"\nthrough: {path.name}", flush=True)


if __name__ == "__main__":  # not in the processes that a program starts
    main()
