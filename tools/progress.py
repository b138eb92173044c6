"""Shows that something goes on. As a program: `python tools/progress.py WHAT COMMAND...` runs a silent command with a progress line.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROGRESS_AFTER_S = 2.0
POLL_S = 0.1


@contextmanager
def progress_line(what: str) -> Iterator[Any]:
    """Yields a function to call regularly; shows the elapsed time if stderr is a terminal."""
    start = time.monotonic()
    shown = False

    def tick() -> None:
        nonlocal shown
        elapsed = time.monotonic() - start
        if sys.stderr.isatty() and elapsed > PROGRESS_AFTER_S:
            shown = True
            sign = "|/-\\"[int(elapsed * 4) % 4]
            print(f"\r  {sign} {what} {elapsed:.0f} s ", end="", file=sys.stderr, flush=True)

    try:
        yield tick
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run a command; its output comes when it is done. Returns its exit status."""
    what, *command = arguments
    with tempfile.TemporaryFile() as output:
        with progress_line(what) as tick, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
            while process.poll() is None:
                tick()
                time.sleep(POLL_S)
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
