"""Runs a whole command for a test, `wagma train` and mpiexec among them, never past a limit, and shows every process's stack then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from mpi_launch import OPEN_MPI

BIN = Path(sys.executable).parent
_DUMP_S = 1.5  # for the stacks to be written, and to be passed on


def run(command: list[str], folder: Path, timeout: float = 110.0) -> str:
    """Standard output of a command that must succeed. Fails the test with all output, and with stacks if it takes too long."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        environment = {
            **OPEN_MPI,
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONFAULTHANDLER": "1",  # SIGABRT then shows the stack of every thread
        }
        process = subprocess.Popen(command, stdout=out, stderr=errors, cwd=folder, env=environment, start_new_session=True)
        try:
            process.wait(timeout)
            why = f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            why = f"not done after {timeout:g} s"
            _end(process)
        output, complaints = (_content(file) for file in (out, errors))
    if process.returncode != 0 or "not done" in why:
        pytest.fail(f"{' '.join(command)}: {why}\n{output}\n{complaints}")
    return output


def _end(process: subprocess.Popen[bytes]) -> None:
    family = _descendants(process.pid)
    ranks = [pid for pid in family if _is_rank(pid)]
    others = [pid for pid in family if pid not in ranks]
    # A process manager ends all ranks when the first one dies: it has to hold still until all have shown their stacks.
    for number, pids, pause in (
        (signal.SIGSTOP, others, 0.1),
        (signal.SIGABRT, ranks, _DUMP_S),
        (signal.SIGCONT, others, _DUMP_S),
        (signal.SIGKILL, family, 0.0),
    ):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(pause)
    process.wait()


def _descendants(pid: int) -> list[int]:
    """The process and all below it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def _is_rank(pid: int) -> bool:
    with contextlib.suppress(OSError):
        words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
        return b"mpi4py" in words and b"wagma.real.launching.supervise" not in words and b"mpiexec" not in words[0]
    return False


def _content(file: tempfile._TemporaryFileWrapper[str]) -> str:
    file.seek(0)
    return file.read()
