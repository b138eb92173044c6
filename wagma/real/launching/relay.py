"""The launcher's end for ranks of other hosts: lines that come by TCP go into the job's pipe, where they are events like all others."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass

from wagma.real.launching.channel import PIPE_LIMIT, Address, machine_word

PIECE = 1 << 16
POLL_S = 0.5


@dataclass(slots=True)
class _Caller:
    """A connection: what it has sent of a line, and whether its first line was the token."""

    rest: bytes = b""
    known: bool = False


class Relay:
    """Takes connections on a port of its own until `close`, in a thread.

    The port is open to all who can reach it, as those of MPI's process managers are: whoever does not begin with the job's token is cut
    off. The thread alone touches the connections; it writes to the pipe as ranks of this machine do, one short line in one write.
    """

    def __init__(self, path: str) -> None:
        self._listener = socket.create_server(("", 0))
        host, port = socket.gethostname(), self._listener.getsockname()[1]
        self.address = Address(path, machine_word(), host, port, secrets.token_hex(16))
        self._pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(self._pipe, True)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def place(self) -> str:
        """Host and port, for people."""
        return f"{self.address.host}:{self.address.port}"

    def close(self) -> None:
        """Cut all off: the supervisors of ranks that are still there end them."""
        self._over.set()
        self._thread.join(2 * POLL_S)  # no longer: it may be writing into a pipe that nobody reads any more

    def _serve(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(POLL_S):
                if key.data is None:
                    connection, _ = self._listener.accept()
                    connection.setblocking(False)
                    self._selector.register(connection, selectors.EVENT_READ, _Caller())
                elif not self._take(key.fileobj, key.data):  # type: ignore[arg-type]  # only sockets are registered
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        os.close(self._pipe)

    def _take(self, connection: socket.socket, caller: _Caller) -> bool:
        """Pass on what has come; returns whether there may be more."""
        try:
            data = connection.recv(PIECE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        *lines, caller.rest = (caller.rest + data).split(b"\n")
        for line in lines:
            if not caller.known:
                caller.known = secrets.compare_digest(line, self.address.token.encode())
                if not caller.known:
                    return False
            elif (event := without_process(line)) is not None:
                os.write(self._pipe, event)
        return bool(data) and len(caller.rest) < PIPE_LIMIT


def without_process(line: bytes) -> bytes | None:
    """The event without its process id, which on this machine is another process's; None if it is no event."""
    with suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and isinstance(event.get("rank"), int) and isinstance(event.get("event"), str):
            event.pop("pid", None)
            return json.dumps(event).encode() + b"\n"
    return None
