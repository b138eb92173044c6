"""The distributed optimizer on real processes, and how it ends there."""

from __future__ import annotations

import pytest
from mpi_launch import mpiexec

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


@pytest.mark.parametrize("transport", ["shm", "mpi"])
def test_start_halves_scaler_several_at_once_and_an_end_left_to_the_exit(transport: str) -> None:
    job = mpiexec(4, "wrapper.py", transport, timeout=60)
    assert job.returncode == 0, job.output
    assert job.output.count(": ok\n") == 4, job.output
