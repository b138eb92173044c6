"""What stands in for ssh between the hosts of tools/hosts.py: `ssh HOST COMMAND...`, over the link, as MPI's launchers call it.

As with ssh the command goes to a shell of the other host, with the environment of a login there: nothing of the caller's comes along.
What it writes comes back on standard output, its exit status last.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys

PORT = 22
CONNECT_LIMIT_S = 20.0
PIECE = 1 << 16


class Server:
    """A host's end. Its process is the first of the host, so that it is told of the end of all whose parents are gone, too."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("", PORT), backlog=16)
        self._connections: dict[int, socket.socket] = {}
        # A signal that nobody handles wakes nobody; the first process of a namespace has none by itself.
        self._wake, end = socket.socketpair()
        end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(end.fileno(), warn_on_full_buffer=False)
        self._end = end

    def serve_until(self, own: int) -> int:
        """Take connections until the process `own` has ended; returns its exit status."""
        while True:
            ready, _, _ = select.select([self._listener, self._wake], [], [])
            if self._wake in ready:
                self._wake.recv(PIECE)
            if self._listener in ready:
                self._accept()
            for process, status in ended():
                if process == own:
                    return status
                if (connection := self._connections.pop(process, None)) is not None:
                    with connection:
                        finish(connection, status)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        with connection.makefile("rb", buffering=0) as lines:
            line = lines.readline()
        if not line:  # whoever called has gone
            connection.close()
            return
        command = ["/bin/sh", "-c", json.loads(line)]
        file = connection.fileno()
        process = subprocess.Popen(
            command, stdin=file, stdout=file, stderr=file, env=login(), cwd=login()["HOME"], start_new_session=True
        )
        self._connections[process.pid] = connection
        process.returncode = 0  # `ended` waits for it, and for those that nobody else does


def ended() -> list[tuple[int, int]]:
    """The processes that have ended since, with their exit statuses."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if process == 0:
            return found
        code = os.waitstatus_to_exitcode(status)
        found.append((process, code if code >= 0 else 128 - code))


def finish(connection: socket.socket, status: int) -> None:
    """The last byte is the exit status; whoever still has the connection open has nothing more to say."""
    try:
        connection.sendall(bytes([status]))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the caller has gone


def login() -> dict[str, str]:
    """The environment of whoever comes by ssh."""
    user = pwd.getpwuid(os.getuid())
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": "/bin/sh"}


def main(arguments: list[str]) -> int:
    """Run a command on another host; returns its exit status, 255 if it cannot be reached."""
    while arguments and arguments[0].startswith("-"):
        arguments = arguments[1:]
    host, *words = arguments
    try:
        connection = socket.create_connection((host, PORT), timeout=CONNECT_LIMIT_S)
    except OSError as error:
        print(f"ssh: {host}: {error}", file=sys.stderr)
        return 255
    connection.settimeout(None)
    connection.sendall(json.dumps(" ".join(words)).encode() + b"\n")
    kept, inputs = b"", [connection.fileno(), 0]
    while True:
        ready, _, _ = select.select(inputs, [], [])
        if 0 in ready:
            data = os.read(0, PIECE)
            if data:
                connection.sendall(data)
            else:
                connection.shutdown(socket.SHUT_WR)
                inputs.remove(0)
        if connection.fileno() in ready:
            data = connection.recv(PIECE)
            if not data:
                return kept[0] if kept else 255
            data = kept + data
            os.write(1, data[:-1])
            kept = data[-1:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
