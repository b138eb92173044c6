"""What a sweep has done so far: one line for each finished run, in a file beside the table, so that a killed sweep can go on.

An entry is found by the digest of what was run (`wagma.studies.sweep`): a changed scenario, setting or program is another digest, and
its old entries are passed over. A line that a kill has cut short is dropped.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from wagma.errors import InputError, WagmaError

SCHEMA = 1
SUFFIX = ".journal"
_HEADER = {"journal": "wagma sweep", "schema": SCHEMA}


class Journal:
    """Opened for one sweep at a time. `entries`: digest -> figures. Raises InputError if another sweep has it, or it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        try:
            # Opened to append, which creates it; readable, for what is there already.
            self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise InputError(f"journal {path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            self._file.close()
            raise InputError(f"journal {path}: another sweep is writing to it") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, digest: str, figures: dict[str, Any]) -> None:
        """Keep a finished run."""
        self.entries[digest] = figures
        self._append({"run": digest, "figures": figures})

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        if not lines and not _dump(_HEADER).startswith(content):
            self._refuse(1)
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1 and entry == _HEADER:
                    continue
                self.entries[entry["run"]] = dict(entry["figures"])
            except (ValueError, KeyError, TypeError):
                self._refuse(number)
            if number == 1:
                self._refuse(number)
        if whole < len(content):
            os.ftruncate(self._file.fileno(), whole)
        if not lines:
            self._append(_HEADER)

    def _append(self, entry: dict[str, Any]) -> None:
        # One unbuffered write: after a kill a line is there or cut short, never mixed with another.
        line = _dump(entry)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise WagmaError(f"journal {self.path}: cannot be written: {error.strerror}") from error

    def _refuse(self, number: int) -> None:
        raise InputError(f"{self.path}:{number}: not a line of a sweep's journal; delete or rename the file to start afresh")


def _dump(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
