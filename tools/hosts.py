"""Several hosts on one machine, joined by links of a known latency and rate: `python tools/hosts.py COMMAND...` runs COMMAND on the first.

    python tools/hosts.py --latency 0.001 --rate 25e6 -- mpiexec -n 4 python -m mpi4py train.py

Hosts are Linux namespaces: each has its own network, name, processes, /tmp and /dev/shm, so that ranks of two of them share no memory;
other folders, and the current one, are the same on all, as on a cluster with a file system of its own. They are called node0, node1, ...
and know each other by name; `mpiexec` of MPICH and of Open MPI finds their list in its environment, and starts the ranks of the others
through a stand-in for ssh. All packets go through tools/hosts_wire.py.

Needs no root: user namespaces, /dev/net/tun, and the programs `unshare`, `mount`, `ip` and `tc`. Whatever happens, nothing is left
behind: all processes are in a namespace of process ids that ends with its first, which ends with this one.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hosts_ssh import Server
from hosts_wire import FIRST_ADDRESS, NETWORK, Wire

HERE = Path(__file__).resolve()
PROGRAMS = ("unshare", "mount", "ip", "tc")
WORLD = ("--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--ipc", "--mount-proc")
HOST = ("--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--ipc", "--mount-proc")
TRIAL_LIMIT_S = 10.0
READY_LIMIT_S = 30.0
UNABLE = 69  # exit status where no hosts can be made (EX_UNAVAILABLE)

INTERFACE = "link0"
MTU = 9000
#: Of the kernel's token bucket in front of the wire, in packets: so many may be ahead of their time, so that its timers need not be exact.
BURST = 4
TUN, TUNSETIFF, IFF_TUN, IFF_NO_PI = "/dev/net/tun", 0x400454CA, 0x0001, 0x1000
OWN = ("/tmp", "/dev/shm")  # folders that a host has for itself


class Unable(Exception):
    """No hosts can be made here, and why."""


def main(arguments: list[str]) -> int:
    """Run a command on the first host; returns its exit status, UNABLE if there are no hosts."""
    if arguments[:1] == ["--as-world"]:
        return World(Path(arguments[1])).run()
    if arguments[:1] == ["--as-host"]:
        return Host(Path(arguments[1]), int(arguments[2]), int(arguments[3])).run()
    options = parser().parse_args(arguments)
    if options.traffic is not None and not os.access(Path(options.traffic).resolve().parent, os.W_OK):
        parser().error(f"--traffic {options.traffic}: must be a file in a folder that can be written")
    try:
        check()
        with tempfile.TemporaryDirectory(prefix="wagma-hosts-") as folder:
            prepare(Path(folder), options)
            return run_world(Path(folder))
    except Unable as error:
        print(f"hosts: error: no hosts can be made here: {error}", file=sys.stderr)
        return UNABLE


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="tools/hosts.py", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--hosts", type=number, default=2, metavar="N", help="how many (default: 2)")
    found.add_argument("--slots", type=number, default=2, metavar="N", help="ranks of each in the lists of hosts (default: 2)")
    found.add_argument("--latency", type=positive, default=1e-3, metavar="SECONDS", help="of a link, one way (default: 0.001)")
    found.add_argument("--rate", type=positive, default=25e6, metavar="BYTES", help="of a link, a second (default: 25e6)")
    found.add_argument("--traffic", metavar="FILE", help="write what went from which host to which, as JSON")
    found.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    return found


def number(text: str) -> int:
    """A number of hosts or slots."""
    if not text.isdigit() or not 1 <= int(text) <= 200:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1 to 200")
    return int(text)


def positive(text: str) -> float:
    """A time or a rate."""
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")


def why_not() -> str | None:
    """Why no hosts can be made here; None if they can."""
    done = subprocess.run([sys.executable, str(HERE), "--", "true"], capture_output=True, text=True, check=False, timeout=60)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def check() -> None:
    """Raise Unable, with the reason, where programs are missing or namespaces are not allowed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise Unable(f"{', '.join(missing)} not found (packages util-linux and iproute2)")
    try:
        done = subprocess.run(
            ["unshare", *WORLD, "unshare", *HOST, "true"], capture_output=True, text=True, check=False, timeout=TRIAL_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise Unable(f"unshare: not done after {TRIAL_LIMIT_S:g} s") from None
    if done.returncode != 0:
        raise Unable((done.stderr.strip().splitlines() or [f"unshare: exit status {done.returncode}"])[-1])


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The files that hosts share: their settings, each other's names, lists for mpiexec, and `ssh`."""
    settings = {**vars(options), "cwd": os.getcwd(), "environment": {**lists(folder), **os.environ}}
    settings["environment"]["PATH"] = f"{folder}/bin{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    (folder / "settings.json").write_text(json.dumps(settings))
    names = [f"{address(host)} node{host}" for host in range(options.hosts)]
    (folder / "names").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
    (folder / "mpich").write_text("".join(f"node{host}:{options.slots}\n" for host in range(options.hosts)))
    (folder / "openmpi").write_text("".join(f"node{host} slots={options.slots}\n" for host in range(options.hosts)))
    (folder / "bin").mkdir()
    ssh = folder / "bin" / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{HERE.with_name("hosts_ssh.py")}" "$@"\n')
    ssh.chmod(0o755)


def lists(folder: Path) -> dict[str, str]:
    """The variables by which `mpiexec` finds the list of hosts: MPICH's, Open MPI's, which would refuse the namespace's root, too."""
    allowed = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    return {"HYDRA_HOST_FILE": f"{folder}/mpich", "PRTE_MCA_prte_default_hostfile": f"{folder}/openmpi", **allowed}


def address(host: int) -> str:
    """A host's address."""
    return f"{NETWORK}.{FIRST_ADDRESS + host}"


def run_world(folder: Path) -> int:
    """Start the namespace of all hosts; it ends with this process, at the latest: it reads from a pipe that then has no writer."""
    ours, theirs = os.pipe()
    command = ["unshare", *WORLD, sys.executable, str(HERE), "--as-world", str(folder)]
    # Ctrl-C is for the command, which has it from the terminal, too, and for nobody else here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, pass_fds=[ours], env={**os.environ, "WAGMA_HOSTS_ALIVE": str(ours)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  there are no threads
    )  # fmt: skip
    os.close(ours)

    # Only this: `wait` below is under way, and may not be called again from here.
    signal.signal(signal.SIGTERM, lambda *_: os.close(theirs))
    return process.wait()


class World:
    """The first process of the namespace: it has no network, makes the hosts, and is the wire between them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings = json.loads((folder / "settings.json").read_text())
        self._alive = int(os.environ["WAGMA_HOSTS_ALIVE"])
        self._hosts: list[socket.socket] = []
        self._status = UNABLE

    def run(self) -> int:
        """Until the command on the first host has ended; returns its exit status."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # has no effect on the first process, and its children do not ignore it
        try:
            interfaces = {host: self._start(host) for host in range(self._settings["hosts"])}
        except Unable as error:
            print(f"hosts: error: no hosts can be made here: {error}", file=sys.stderr)
            return UNABLE
        wire = Wire(interfaces, self._settings["latency"], self._settings["rate"])
        self._hosts[0].sendall(b"go")
        first = self._hosts[0]
        wire.carry({first.fileno(): self._over, self._alive: lambda: False})
        self._write(wire)
        return self._status

    def _start(self, host: int) -> int:
        """Make a host; returns the file descriptor of its interface."""
        ours, theirs = socket.socketpair()
        command = ["unshare", *HOST, sys.executable, str(HERE), "--as-host", str(self._folder), str(host), str(theirs.fileno())]
        subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(READY_LIMIT_S)
        try:
            said, files, _, _ = socket.recv_fds(ours, 1 << 12, 1)
        except TimeoutError:
            raise Unable(f"node{host}: not ready after {READY_LIMIT_S:g} s") from None
        if not files:
            raise Unable(f"node{host}: {said.decode() or 'ended without a word'}")
        os.set_blocking(files[0], False)
        self._hosts.append(ours)
        return files[0]

    def _over(self) -> bool:
        status = self._hosts[0].recv(64)
        if status:
            self._status = int(status)
        return False

    def _write(self, wire: Wire) -> None:
        """The file that --traffic asks for."""
        if self._settings["traffic"] is None:
            return
        rows = [
            {"from": f"node{sender}", "to": f"node{receiver}", "packets": packets, "bytes": size}
            for (sender, receiver), (packets, size) in sorted(wire.traffic.items())
        ]
        Path(self._settings["cwd"], self._settings["traffic"]).write_text(json.dumps(rows) + "\n")


class Host:
    """The first process of a host: it makes the interface, takes ssh's calls, and on node0 runs the command."""

    def __init__(self, folder: Path, host: int, channel: int) -> None:
        self._folder = folder
        self._host = host
        self._channel = socket.socket(fileno=channel)
        self._settings: dict[str, Any] = json.loads((folder / "settings.json").read_text())

    def run(self) -> int:
        """Until the command has ended, or with the others."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            socket.sethostname(f"node{self._host}")
            self._own_folders()
            interface = self._interface()
            os.environ.clear()
            os.environ.update(self._settings["environment"])
            server = Server()
        except (OSError, Unable) as error:
            self._channel.sendall(" ".join(str(error).split()).encode())
            return UNABLE
        socket.send_fds(self._channel, [b"ready"], [interface])
        os.close(interface)
        if self._host != 0:
            return server.serve_until(0)
        self._channel.recv(2)
        try:
            process = subprocess.Popen(self._settings["command"], cwd=self._settings["cwd"], close_fds=True)
        except OSError as error:
            print(f"hosts: error: {self._settings['command'][0]}: {error.strerror}", file=sys.stderr)
            self._channel.sendall(b"127")
            return 127
        status = server.serve_until(process.pid)
        process.returncode = status
        self._channel.sendall(str(status).encode())
        return status

    def _own_folders(self) -> None:
        """A new /tmp and /dev/shm, with nothing of the old ones but what a cluster has on all hosts; names of the other hosts."""
        shared = {self._settings["cwd"], str(self._folder), sys.prefix, sys.base_prefix, str(HERE.parent.parent)}
        kept = {path: os.open(path, os.O_PATH) for path in sorted(shared) if any(within(path, own) for own in OWN)}
        for own in OWN:
            do(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", own])
        for path, file in kept.items():
            Path(path).mkdir(parents=True, exist_ok=True)
            do(["mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{file}", path], keep=file)
        do(["mount", "--bind", f"{self._folder}/names", "/etc/hosts"])
        do(["mount", "-t", "sysfs", "sysfs", "/sys"])  # the old one lists the interfaces of another network

    def _interface(self) -> int:
        """The TUN device, as a file descriptor; what is written to it arrives here."""
        try:
            file = os.open(TUN, os.O_RDWR)
        except OSError as error:
            raise Unable(f"{TUN}: {error.strerror}") from None
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), IFF_TUN | IFF_NO_PI))
        do(["ip", "link", "set", "lo", "up"])
        do(["ip", "address", "add", f"{address(self._host)}/24", "dev", INTERFACE])
        do(["ip", "link", "set", INTERFACE, "mtu", str(MTU), "txqueuelen", "10000", "up"])
        # The wire keeps the rate to the byte. The token bucket is for those who send: without it the kernel would take all that they
        # write at once, and a short message would wait on the wire behind megabytes, as it does with no interface of such a rate.
        rate = self._settings["rate"]
        bucket = ["rate", f"{8 * rate:.0f}bit", "burst", str(BURST * MTU), "limit", str(1 << 26)]
        do(["tc", "qdisc", "add", "dev", INTERFACE, "root", "tbf", *bucket])
        return file


def within(path: str, folder: str) -> bool:
    """Whether a path is below a folder."""
    return Path(folder) in Path(path).parents


def do(command: Sequence[str], keep: int | None = None) -> None:
    """Run a program of the system. Raises Unable with its last words."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, pass_fds=() if keep is None else (keep,)
    )
    if done.returncode != 0:
        raise Unable(f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
