"""What the ranks of a job tell the process that launched them: that they began, how far they are, how they ended.

A named pipe of its own, since MPI's process managers may mix the ranks' standard error, and add to it. One event is one JSON line in
one write, short enough to be atomic.
"""

from __future__ import annotations

import errno
import json
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Any of these is set in a rank of MPICH, PMIx and Open MPI.
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")

PIPE_LIMIT = select.PIPE_BUF
TEXT_LIMIT = PIPE_LIMIT // 16  # characters: JSON may need 12 bytes for one


class Sender:
    """A rank's end. A job that nobody listens to has no path: then `send` returns False."""

    def __init__(self, path: str | None, rank: int) -> None:
        self._rank = rank
        self._file: int | None = None
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # the launcher is gone, or on another host
                return
            os.set_blocking(self._file, True)

    def send(self, event: str, **values: Any) -> bool:
        """Send one event; whether somebody will read it."""
        if self._file is None:
            return False
        try:
            os.write(self._file, _line({"event": event, "rank": self._rank, **values}))
        except OSError:
            self._file = None
            return False
        return True

    def send_text(self, text: str) -> bool:
        """Send a long text, such as a stack, as several events."""
        heard = self._file is not None
        for begin in range(0, len(text), TEXT_LIMIT):
            heard = self.send("text", text=text[begin : begin + TEXT_LIMIT])
        return heard


def _line(event: dict[str, Any]) -> bytes:
    """The event in one atomic write, with its longest text cut if it must be."""
    while len(line := json.dumps(event).encode()) >= PIPE_LIMIT:
        longest = max((key for key in event if isinstance(event[key], str)), key=lambda key: len(event[key]))
        event[longest] = f"{event[longest][: len(event[longest]) // 2]}..."
    return line + b"\n"


def is_read(path: str) -> bool:
    """Whether a launcher still listens to the channel."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        # ENXIO: nobody has it open to read; ENOENT: its folder is gone. Anything else (too many open files, say) tells nothing.
        return error.errno not in (errno.ENXIO, errno.ENOENT)
    return True


def stack_file(path: str | Path, rank: int) -> Path:
    """Where a rank of the job with this channel writes its stack if it crashes."""
    return Path(path).with_name(f"stack.{rank}")


class Receiver:
    """The launcher's end: a pipe in a folder that the caller owns."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events"
        os.mkfifo(self.path, 0o600)
        # Open for both directions: the pipe then never ends, however many ranks have come and gone.
        self._file = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""

    def fileno(self) -> int:
        """For selectors."""
        return self._file

    def events(self) -> Iterator[dict[str, Any]]:
        """What has come since."""
        while True:
            try:
                data = os.read(self._file, 1 << 16)
            except BlockingIOError:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def close(self) -> None:
        """No more events."""
        os.close(self._file)
