"""The same over MPI, in one job: what test_real_algorithms.py says of threads."""

from __future__ import annotations

import pytest
from mpi_launch import mpiexec

pytestmark = pytest.mark.mpi


def test_letters_over_mpi() -> None:
    job = mpiexec(4, "gossip.py", timeout=60)
    assert job.returncode == 0, job.output
    for algorithm in ("d_psgd", "ad_psgd", "swarm_sgd", "eager_sgd"):
        assert job.output.count(f"rank 1: {algorithm}: bad batch") == 1, job.output
        assert job.output.count(f": {algorithm}: rank 1 failed: ValueError: bad batch") == 3, job.output
    assert job.output.count("the exchange of iteration 0 lacks the model of rank 1 after 1 s") == 2, job.output
    assert job.output.count("done") == 4, job.output
