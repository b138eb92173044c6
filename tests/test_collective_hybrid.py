"""Several collectives at once, on sub-communicators and beside each other, and the memory that one takes."""

from __future__ import annotations

import re

import pytest
from mpi_launch import mpiexec

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


def test_sub_communicators_and_the_world_at_once() -> None:
    job = mpiexec(4, "hybrid.py", "beside", timeout=60)
    assert job.returncode == 0, job.output
    assert job.output.count(f"ok, {['shared memory'] * 3}") == 4, job.output


def test_three_copies_beyond_the_callers_own() -> None:
    job = mpiexec(2, "hybrid.py", "memory", timeout=60)
    assert job.returncode == 0, job.output
    found = re.findall(r"rank 0: (\w+): 3 said, (\S+) found", job.output)
    assert [mode for mode, _ in found] == ["tensor", "resident"], job.output
    assert all(2.8 < float(copies) < 3.2 for _, copies in found), job.output
