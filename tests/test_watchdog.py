"""Who holds up a run, told by the ranks themselves: after a while without anything that moves, and on SIGUSR1."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import numpy as np
import pytest
from mpi_launch import mpiexec

pytest.importorskip("wagma._native")

from wagma import GroupAllreduce
from wagma.real.local import LocalCommunicator, run_local

TRANSPORTS = ("shared memory", "MPI")


def test_time_without_reports_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    def program(comm: LocalCommunicator) -> None:
        with GroupAllreduce(comm, np.zeros(4), sync_period=2, watchdog_s=0) as collective:
            for _ in range(4):
                collective.average()

    run_local(2, program)
    assert capfd.readouterr().err == ""


@pytest.mark.mpi
@pytest.mark.slow
def test_a_rank_that_stays_away_is_named_by_all_and_by_itself() -> None:
    job = mpiexec(4, "watchdog.py", "absent", timeout=60)
    assert job.returncode == 0, job.output
    said = job.output.split("rank 1: comes")[0]
    for transport in TRANSPORTS:
        for rank in (0, 2, 3):
            waits = (
                rf"wagma: rank {rank} of 4 \({transport}\): has waited in version 1, a sync, for \S+ s;"
                r" executes version 1 of ranks 0, 1, 2, 3, which rank 1 has not begun; activated up to version 1; nothing has moved"
            )
            assert re.search(waits, said), (waits, job.output)
        away = (
            rf"wagma: rank 1 of 4 \({transport}\): has been in its own program, after version 0, for \S+ s;"
            " version 1, a sync, waits for this rank to arrive; activated up to version 1; nothing has moved"
        )
        assert re.search(away, said), (away, job.output)
    # Somebody has asked it, too.
    assert re.search(r'File ".*watchdog\.py", line \d+ in stay_away', said), job.output
    assert job.output.count(": done\n") == 4, job.output


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("transport", ["mpi", "shm"])
def test_a_stopped_rank_is_named(transport: str) -> None:
    job = mpiexec(2, "watchdog.py", "stopped", transport, timeout=60)
    assert job.returncode == 0, job.output
    said = job.output.split("rank 0: lets it go on\n")[0]
    begun = r"which rank 1 has not begun|\d of \d+ blocks are done.*(data of rank 1 has not come|on their way to rank 1)"
    begun += r"|\d+ of \d+ chunks are (averaged|reduced).*(data of rank 1 has not come|in the hands of members)"
    assert re.search(rf"wagma: rank 0 of 2 \((MPI|shared memory)\): .* executes version \d of ranks 0, 1, ({begun})", said), (
        job.output
    )
    assert job.output.count(f"{transport} done") == 2


def test_lacking_an_initiator_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """The version that all wait for can be activated by one rank only, and that rank is somewhere else."""

    def program(comm: LocalCommunicator) -> int:
        with GroupAllreduce(comm, np.zeros(4), 2, "never", initiators="majority", seed=3, watchdog_s=0.1) as collective:
            (drawn,) = collective.schedule.candidates(0)
            if comm.rank == drawn:
                time.sleep(1.5)
            collective.average()
        return drawn

    drawn = run_local(2, program)[0]
    said = capfd.readouterr().err
    assert re.search(
        rf"wagma: rank {1 - drawn} of 2 .*: has waited in version 0 for \S+ s;"
        rf" version 0 lacks an activation, which is for rank {drawn}; activated up to version none",
        said,
    ), said


#: Two engines, the second of which finds the first one's handler in place; the argument says what the program does with the signal.
USED = """
import os, signal, sys, time
import numpy as np
heard = []
handler = {"python": lambda *_: heard.append(1), "ignored": signal.SIG_IGN}.get(sys.argv[1], signal.SIG_DFL)
signal.signal(signal.SIGUSR1, handler)
from wagma import GroupAllreduce
from wagma.real.local import LocalCommunicator, _World
def program(comm):
    with GroupAllreduce(comm, np.zeros(4)), GroupAllreduce(comm, np.zeros(4)):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(2.5)
program(LocalCommunicator(_World(1), 0))
print(len(heard))
"""


@pytest.mark.slow
def test_a_program_that_uses_the_signal_itself_keeps_it() -> None:
    started = {
        how: subprocess.Popen([sys.executable, "-c", USED, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for how in ("default", "python", "ignored")
    }
    for how, heard, reports in (("default", 0, 2), ("python", 1, 0), ("ignored", 0, 0)):
        output, errors = started[how].communicate(timeout=60)
        assert (started[how].returncode, output) == (0, f"{heard}\n"), (how, errors)
        assert errors.count("wagma: rank 0 of 1 (shared memory): has been in its own program") == reports, (how, errors)
        assert errors.count("most recent call first") == min(1, reports), (how, errors)
