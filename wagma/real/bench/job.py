"""Starts the ranks of a measurement through mpiexec, with any Python and its MPI library, and takes in the one result of rank 0."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wagma.errors import InputError, WagmaError
from wagma.real.launching import launch
from wagma.real.launching.manager import Manager

#: Runs on a Python that has mpi4py and numpy, but no wagma.
ROUNDS = Path(__file__).with_name("rounds.py")
CHECK_LIMIT_S = 60.0
LAST_LINES = 20
READ_LIMIT_S = 5.0  # for what a job that was ended has still said

#: What makes a library's waits yield the processor, by how its version begins. MPICH yields after each look instead of after 1000, and
#: sleeps for an instant after 4096 in vain.
YIELDING: Mapping[str, Mapping[str, str]] = {
    "MPICH": {"MPIR_CVAR_POLLS_BEFORE_YIELD": "1", "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1"},
    "Open MPI": {"OMPI_MCA_mpi_yield_when_idle": "1"},
}
#: ... and what makes it spin, where wagma's launcher has it yield. MPICH is left as it is.
SPINNING: Mapping[str, Mapping[str, str]] = {"Open MPI": {"OMPI_MCA_mpi_yield_when_idle": "0"}}


@dataclass(frozen=True, slots=True)
class Job:
    """What to start: `python -m mpi4py PROGRAM SPECIFICATION` on so many ranks. variables: added to the ranks' environment."""

    ranks: int
    program: Sequence[str]
    specification: Mapping[str, Any]
    python: Path = field(default_factory=lambda: Path(sys.executable))
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """The command line."""
        beside = self.python.with_name("mpiexec")
        own = launch.find_mpiexec() if self.python == Path(sys.executable) else None
        mpiexec = own or (beside if os.access(beside, os.X_OK) else _on_path())
        rank = [str(self.python), "-m", "mpi4py", *self.program, json.dumps(self.specification)]
        return [str(mpiexec), "-n", str(self.ranks), *rank]


def _on_path() -> str:
    found = shutil.which("mpiexec")
    if found is None:
        raise InputError("mpiexec: there is none beside the Python of --mpi-python, nor on PATH")
    return found


def _environment(python: Path) -> dict[str, str]:
    """The ranks' environment; what leads this Python to its modules and its MPI would lead another one astray."""
    own: set[str] = set() if python == Path(sys.executable) else {"PYTHONPATH", "PYTHONHOME", "MPI4PY_LIBMPI", "MPI4PY_MPIABI"}
    return {name: value for name, value in launch.environment().items() if name not in own}


def all_cores() -> Mapping[str, str]:
    """The variables that let one rank have all cores, as it would have without the launcher; none that the user has set."""
    cores = len(os.sched_getaffinity(0))
    return {name: str(cores) for name in launch.THREAD_VARIABLES if name not in os.environ}


def library_of(python: Path) -> str:
    """The MPI library that a Python's mpi4py has, in a few words. Raises InputError if it has none."""
    if not os.access(python, os.X_OK) or python.is_dir():
        raise InputError(f"--mpi-python {python}: must be the file of a Python that has mpi4py and numpy")
    code = f"import runpy; print(runpy.run_path({str(ROUNDS)!r})['library']())"
    try:
        done = subprocess.run(
            [str(python), "-c", code],
            capture_output=True,
            text=True,
            timeout=CHECK_LIMIT_S,
            env=_environment(python),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"--mpi-python {python}: cannot be asked for its MPI library ({error})") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise InputError(f"--mpi-python {python}: must have mpi4py and numpy, with an MPI library: {said}")
    return done.stdout.strip().splitlines()[-1]


def waits(library: str, *, yielding: bool) -> Mapping[str, str] | None:
    """The variables that make a library yield, or not, while it waits; None if none is known."""
    known = YIELDING if yielding else SPINNING
    return next((variables for name, variables in known.items() if library.startswith(name)), None)


def yields(library: str) -> bool:
    """Whether a library yields in the environment that the launcher gives to ranks."""
    variables = waits(library, yielding=True)
    own = launch.environment()
    return variables is not None and all(own.get(name) == value for name, value in variables.items())


def run(job: Job, limit_s: float, heard: Callable[[int, int], None] | None = None) -> Any:
    """Start a job and return its result. heard(done, total): as the ranks say how far they are.

    Raises WagmaError with what a rank said last if the job fails, or has not ended after limit_s seconds. No rank outlives the call.
    """
    name = f"{job.program[-1].removeprefix(str(ROUNDS.parent) + os.sep)} on {job.ranks} ranks"
    process = subprocess.Popen(
        job.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**_environment(job.python), **job.variables}, start_new_session=True,
    )  # fmt: skip
    result: dict[str, Any] = {}
    errors: list[str] = []
    threads = [
        threading.Thread(target=_listen, args=(process.stdout, result, heard), daemon=True),
        threading.Thread(target=_keep, args=(process.stderr, errors), daemon=True),
    ]
    with launch.terminated_like_interrupted(), process:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + limit_s
        try:
            code = process.wait(limit_s)
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise WagmaError(f"{name}: not done after {limit_s:g} s") from None
        finally:
            launch.stop(process)
            for thread in threads:  # else the pipes are closed under them, and each ends with a traceback
                thread.join(READ_LIMIT_S)
    if code != 0 or "result" not in result:
        lines = [line for line in errors if line.strip()]
        raise WagmaError(f"{name}: {lines[-1].strip() if lines else f'ended with status {code} and no result'}")
    return result["result"]


def _listen(lines: Any, result: dict[str, Any], heard: Callable[[int, int], None] | None) -> None:
    """A thread: what rank 0 reports. Anything else on standard output is no report of ours."""
    for line in lines:
        with suppress(json.JSONDecodeError, AttributeError):
            for kind, value in json.loads(line).items():
                if kind == "result":
                    result[kind] = value
                elif kind == "progress" and heard is not None:
                    heard(*value)


def _keep(lines: Any, kept: list[str]) -> None:
    """A thread: the last lines of standard error."""
    manager = Manager(blocks=True)
    for line in lines:
        if not manager.says(line):
            kept.append(line)
            del kept[:-LAST_LINES]
