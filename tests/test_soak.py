"""Long runs: torn reads by the million, a hundred thousand collectives, over threads, processes and mpiexec."""

from __future__ import annotations

import native_programs
import pytest
from mpi_launch import mpiexec

pytestmark = pytest.mark.long


def test_no_torn_model_in_millions() -> None:
    status, said = native_programs.run("test_torn_reads", 90)
    assert (status, said["torn"]) == (0, 0)
    assert said["published"] > 1_000_000


def test_a_hundred_thousand_collectives() -> None:
    status, said = native_programs.run("test_soak", 100_000)
    assert status == 0
    assert said["collectives"] >= 100_000


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["shm", "mpi"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_soak_over_mpiexec(ranks: int, transport: str) -> None:
    job = mpiexec(ranks, "soak.py", "20000" if transport == "shm" else "5000", transport, timeout=170)
    assert job.returncode == 0, job.output
    assert job.output.count(": ok ") == ranks, job.output
