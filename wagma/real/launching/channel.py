"""What the ranks of a job tell the process that launched them: that they began, how far they are, how they ended.

A named pipe of its own, since MPI's process managers may mix the ranks' standard error, and add to it. One event is one JSON line in
one write, short enough to be atomic. Ranks of other hosts, which cannot open the pipe, send the same lines by TCP
(`wagma.real.launching.relay`).
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

#: Any of these is set in a rank of MPICH, PMIx and Open MPI.
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")

PIPE_LIMIT = select.PIPE_BUF
TEXT_LIMIT = PIPE_LIMIT // 16  # characters: JSON may need 12 bytes for one


CONNECT_LIMIT_S = 5.0  # of a rank on another host that cannot reach the launcher: then nobody hears of it
SEND_LIMIT_S = 5
CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a job's events go: its pipe; where there may be other hosts, also the machine that has it, and where that takes connections."""

    path: str
    machine: str = ""
    host: str = ""
    port: int = 0
    token: str = ""

    def __str__(self) -> str:
        """One word, for a command line."""
        return ",".join((self.path, self.machine, self.host, str(self.port), self.token)) if self.host else self.path

    @classmethod
    def read(cls, text: str) -> Address:
        """What `str` has written."""
        path, *rest = text.rsplit(",", 4)
        if len(rest) < 4 or not rest[2].isdigit():
            return cls(text)
        own, host, port, token = rest
        return cls(path, own, host, int(port), token)

    @property
    def is_here(self) -> bool:
        """Whether the pipe is this machine's: the file system of another one may show it as well."""
        return not self.host or self.machine == machine_word()

    def connect(self) -> socket.socket:
        """A connection to the launcher, which has been told the token. Raises OSError."""
        connection = socket.create_connection((self.host, self.port), timeout=CONNECT_LIMIT_S)
        # Where the other end is cut off writing fails after this time, as soon as what the system keeps is full.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_LIMIT_S, 0))
        connection.sendall(self.token.encode() + b"\n")
        return connection


def machine_word() -> str:
    """This machine, or container, in 16 letters."""
    from wagma.real.node import machine  # imports numpy, which a supervisor on one machine can do without

    return sha256(machine().encode()).hexdigest()[:16]


class Sender:
    """A rank's end. A job that nobody listens to has no path: then `send` returns False."""

    def __init__(self, channel: str | None, rank: int) -> None:
        self._rank = rank
        self._file: int | None = None
        if channel is None:
            return
        address = Address.read(channel)
        with suppress(OSError):  # the launcher is gone, or out of reach
            if address.is_here:
                self._file = os.open(address.path, os.O_WRONLY | os.O_NONBLOCK)
            else:
                self._file = address.connect().detach()
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


def wait_until_unread(channel: str) -> bool:
    """Until nobody listens to the channel any more; returns False at once if nobody did, or if it is out of reach."""
    address = Address.read(channel)
    if address.is_here:
        if not is_read(address.path):
            return False
        while is_read(address.path):
            time.sleep(CHECK_S)
        return True
    try:
        connection = address.connect()
    except OSError:
        return False
    with connection:
        connection.settimeout(None)
        with suppress(OSError):
            while connection.recv(1):  # nothing comes, but its end
                pass
    return True


def stack_file(channel: str | Path, rank: int) -> Path:
    """Where a rank of the job with this channel writes its stack if it crashes."""
    return Path(Address.read(str(channel)).path).with_name(f"stack.{rank}")


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
