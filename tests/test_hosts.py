"""tools/hosts.py: the wire, what stands in for ssh, where it is refused, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import two_hosts
from two_hosts import HOSTS, TOOLS, UNABLE

sys.path.insert(0, str(TOOLS))

from hosts_wire import Wire

LATENCY_S, RATE = 0.02, 1e6
WORDS = "no hosts can be made here: "


def packet(receiver: int, size: int, mark: int = 0) -> bytes:
    """As much of an IP packet as the wire reads."""
    head = bytearray(size)
    head[0], head[1], head[19] = 0x45, mark, receiver + 1
    return bytes(head)


def test_the_wire_takes_its_time_and_keeps_the_order() -> None:
    """No packet comes before the ones in front of it have left, at the link's rate, and its latency is over."""
    ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    over, stop = socket.socketpair()
    for _, device in ends:
        device.setblocking(False)
    wire = Wire({host: device.fileno() for host, (_, device) in enumerate(ends)}, LATENCY_S, RATE)
    thread = threading.Thread(target=wire.carry, args=({over.fileno(): lambda: False},))
    thread.start()
    try:
        sizes = [8000, 100, 8000, 4000]
        begin = time.monotonic()
        for mark, size in enumerate(sizes):
            ends[0][0].send(packet(1, size, mark))
            ends[1][0].send(packet(7, size))  # there is no such host
        came, due = [], LATENCY_S
        for mark, size in enumerate(sizes):
            data = ends[1][0].recv(1 << 16)
            came.append(time.monotonic() - begin)
            due += size / RATE
            assert (data[1], len(data)) == (mark, size)
            assert came[-1] >= due
        assert came[-1] < due + 0.5
        assert wire.traffic == {(0, 1): [4, sum(sizes)]}
    finally:
        stop.send(b"!")
        thread.join()
        for one in (over, stop, *(end for pair in ends for end in pair)):
            one.close()


def refused(program: Path, says: str, status: int = 1) -> None:
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    program.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder that is all of PATH, with every program that is needed but unshare."""
    for name in ("mount", "ip", "tc"):
        refused(tmp_path / name, "not to be called")
    return tmp_path


def attempt(path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": str(path)}
    command = [sys.executable, str(HOSTS), "--", "true"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_where_namespaces_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: one line, a status of its own, and tests are skipped for that reason."""
    reason = "unshare: unshare failed: Operation not permitted"
    refused(path / "unshare", reason)
    done = attempt(path)
    assert (done.returncode, done.stdout, done.stderr) == (UNABLE, "", f"hosts: error: {WORDS}{reason}\n")
    monkeypatch.setenv("PATH", str(path))
    with pytest.raises(pytest.skip.Exception, match=reason):
        two_hosts.run("true")


def test_where_programs_are_missing(path: Path) -> None:
    done = attempt(path)
    assert done.returncode == UNABLE
    assert done.stderr == f"hosts: error: {WORDS}unshare not found (packages util-linux and iproute2)\n"


def test_where_the_kernel_refuses() -> None:
    """For real: below this namespace there may be no other."""
    two_hosts.run("true")  # or it is skipped
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", sys.executable, str(HOSTS), "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == UNABLE
    assert done.stderr.startswith(f"hosts: error: {WORDS}unshare: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("option", "value"), [("--rate", "0"), ("--latency", "soon"), ("--hosts", "0"), ("--slots", "1.5")])
def test_bad_options(option: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HOSTS), option, value, "--", "true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"{option}: '{value}': must be" in done.stderr.replace("argument ", "")


def test_hosts_are_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, processes, folders and the network of each; a command on another one; exit statuses."""
    monkeypatch.chdir(tmp_path)
    script = """
        touch /dev/shm/mine /tmp/mine; hostname; ls "$0"; ls /sys/class/net | tr '\\n' ' '
        ssh -x node1 'hostname; ls /dev/shm; ls /tmp | grep mine; echo 1: $SECRET; exit 3'; echo status $?
        ssh nowhere true 2>/dev/null; echo status $?
        ssh node1 'kill -9 $$'; echo status $?
        exit 7
    """
    (tmp_path / "shared").touch()
    job = two_hosts.run("sh", "-c", script, str(tmp_path), SECRET="not handed on")
    expected = ["node0", "shared", "link0 lo node1", "1:", "status 3", "status 255", "status 137"]
    assert [line.strip() for line in job.output.splitlines()] == expected
    assert job.returncode == 7


def alive(mark: str) -> list[str]:
    """Processes with this in their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in file.read_bytes():
                found.append(file.parent.name)
        except OSError:
            continue  # it has ended meanwhile
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_behind(number: signal.Signals, tmp_path: Path) -> None:
    """Neither processes on all hosts, nor with them namespaces, devices and mounts, which end with the last process."""
    mark = f"{60 + number}.{os.getpid()}"
    script = f"ssh node1 'echo there; exec sleep {mark}' & echo here; exec sleep {mark}"
    job = two_hosts.start("sh", "-c", script, TMPDIR=str(tmp_path))
    try:
        job.wait_for("here", 1, 20.0)
        job.wait_for("there", 1, 20.0)
        assert len(alive(mark)) >= 4  # ssh and its shell among them
        os.kill(job.process.pid, number)
        job.wait(20.0)
        deadline = time.monotonic() + 20.0
        while alive(mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive(mark) == []
        assert (list(tmp_path.iterdir()) == []) is (number == signal.SIGTERM)  # files, after SIGKILL
    finally:
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait()


def test_an_interrupt_is_for_the_command() -> None:
    job = two_hosts.start("sh", "-c", "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done")
    job.wait_for("ready", 1, 20.0)
    job.interrupt()
    done = job.wait(20.0)
    assert (done.returncode, done.output) == (5, "ready\ncaught\n")
