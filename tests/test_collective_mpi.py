"""The collective on real processes: exact averages, and every way in which a run can end. Each job has a time limit of its own."""

from __future__ import annotations

import re
import time

import pytest
from mpi_launch import Finished, mpiexec, start

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

#: A job with a failed rank is over by then, the start of its interpreters included; ranks that wait would for 30 s or more.
PROMPT_S = 10.0


#: By the number of ranks, what one job does one after the other.
AVERAGES = {
    1: ["1,5,10,float32,world,40"],
    2: ["2,6,3000000,float32,world,12"],  # many blocks
    3: ["2,0,1000,float32,world,40", "3,4,700001,float64,world,8"],
    4: [
        "2,5,1000,float64,world,40",
        "4,7,3,float32,world,40",  # fewer elements than ranks: some slices are empty
        "2,0,33,float64,sub,40",
    ],
}


@pytest.mark.parametrize("ranks", AVERAGES)
def test_averages_are_exact(ranks: int) -> None:
    cases = [f"{case},{transport}" for case in AVERAGES[ranks] for transport in ("mpi", "auto")]
    job = mpiexec(ranks, "averages.py", *cases, timeout=60)
    assert job.returncode == 0, job.output
    assert sorted(job.output.split("\n"))[1:] == sorted(f"rank {rank}: ok {case}" for rank in range(ranks) for case in cases)


@pytest.mark.parametrize(
    ("ranks", "counts", "dtypes"),
    [
        (1, "1,1000,700001", "float32,float16"),
        (2, "1,3,1000,5000,3000000", "float32,float64,float16"),
        (3, "1,2,1000,30000,700001", "float32,float64,float16"),
        (4, "1,3,4097,5000,700001", "float32,float64,float16"),
        (5, "1,4,1000,20000,700001", "float32,float16"),
    ],
)
def test_sums_over_mpi_have_the_bits_of_the_association_tree(ranks: int, counts: str, dtypes: str) -> None:
    """Groups of every length up to `ranks`; null contributions, and members that want the mean beside ones that want the sum."""
    job = mpiexec(ranks, "exchange.py", counts, dtypes, timeout=60)
    assert job.returncode == 0, job.output
    assert job.output.count("ok") == ranks, job.output


def test_members_that_do_not_come_are_named_by_the_exchange() -> None:
    job = mpiexec(4, "exchange.py", "absent", timeout=30)
    assert job.returncode == 0, job.output
    assert job.output.count("lacks ranks 1\n") == 3, job.output


@pytest.mark.parametrize("case", ["error", "error_outside"])
def test_error_of_one_rank_comes_first_and_ends_the_job(case: str) -> None:
    job = _failing(case)
    # Not by whole lines: ranks that end at the same time write into each other's.
    said = re.findall(r"\b(\w+(?:Error|Failed|Timeout))\b", job.output)
    assert said[0] == "ValueError", job.output
    assert set(said) == {"ValueError", "PeerFailed"}, job.output
    # Whoever is last to say so may be cut off by the end of the job, where cores are few.
    assert 1 <= job.output.count("rank 1 failed: ValueError: bad batch") <= 3, job.output


def test_exit_with_an_error_ends_the_job() -> None:
    job = _failing("leave")
    assert "bad configuration" in job.output
    assert job.output.count("PeerFailed: rank 1 failed: SystemExit: bad configuration") >= 1, job.output


def test_giving_up_at_creation_leaves_no_memory_behind_that_mpi_writes_to() -> None:
    job = mpiexec(4, "ends.py", "late_at_creation", timeout=30)
    assert job.output.count("gave up") >= 3, job.output
    assert job.output.count("clean") == 4, job.output


def test_program_that_survives_a_peers_failure_ends_in_order() -> None:
    job = mpiexec(4, "ends.py", "caught", timeout=30)
    assert job.returncode == 0, job.output
    assert "rank 1: caught ValueError: bad batch" in job.output
    assert job.output.count("caught PeerFailed: rank 1 failed: ValueError: bad batch") == 3


def test_killed_rank_ends_the_job() -> None:
    assert "running" in _failing("kill").output


def test_interrupt_ends_the_job() -> None:
    job = start(4, "ends.py", "interrupt")
    job.wait_for("running", 4, 30.0)
    time.sleep(0.3)  # rank 1 stays away for 30 s from the sync that the others wait in by now
    job.interrupt()
    ended = job.wait(60)
    assert ended.returncode != 0
    assert ended.seconds < PROMPT_S, ended.output


def test_interrupt_reaches_a_rank_that_waits_in_the_kernel() -> None:
    job = _failing("interrupt_one")
    assert "KeyboardInterrupt" in job.output, job.output
    assert 1 <= job.output.count("PeerFailed: rank 1 failed: KeyboardInterrupt") <= 3, job.output


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("mismatch", "InputError: rank 2 has 999 elements of float32.*; rank 0 has 1000 elements"),
        ("refused", r"InputError: rank 2: buffer has shape \(10, 100\): must be 1-D"),
    ],
)
def test_wrong_buffer_of_one_rank_is_named_on_every_rank(case: str, message: str) -> None:
    job = _failing(case)
    assert len(re.findall(message, job.output)) >= 1, job.output
    # MPI_Abort of the first rank to end may cut off the others' last words; each said its error or was cut off.
    assert "PeerFailed" not in job.output
    assert "Timeout" not in job.output


def test_absent_rank_is_not_waited_for_at_creation() -> None:
    job = _failing("absent")
    assert re.search(r"CollectiveTimeout: rank \d: not all 4 ranks .* within 0\.5 s", job.output), job.output


def test_timeout_says_who_waited_for_whom() -> None:
    job = _failing("timeout")
    message = r"CollectiveTimeout: rank [023]: version 0 \(sync of ranks 0, 1, 2, 3\) is not complete after 1 s; "
    assert re.search(message + r"version 0 lacks the part of rank 1 ", job.output), job.output


@pytest.mark.parametrize("case", ["no_close", "dropped"])
def test_exit_without_close_serves_the_others_to_the_end(case: str) -> None:
    job = mpiexec(4, "ends.py", case, timeout=30)
    assert job.returncode == 0, job.output
    assert job.output.count("done") == 4, job.output


def _failing(case: str) -> Finished:
    job = mpiexec(4, "ends.py", case, timeout=60)
    assert job.returncode != 0, job.output
    assert job.seconds < PROMPT_S, job.output
    return job
