"""Averages on every transport have the bits that wagma.core computes, in every dtype, in the caller's memory and in the library's."""

from __future__ import annotations

import pytest
from mpi_launch import mpiexec
from published import DTYPES, MANY, Case, evolve, run

pytest.importorskip("wagma._native")

from wagma.core.digest import digest
from wagma.real.local import run_local


@pytest.mark.parametrize("resident", [False, True], ids=["tensor", "resident"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads(dtype: str, resident: bool) -> None:
    late = 0
    for ranks, size, period, count in ((2, 2, 0, MANY), (2, 2, 4, MANY), (3, 2, 5, 3), (4, 4, 4, 1000), (4, 3, 0, 17)):
        case = Case(size, period, dtype, count, resident=resident, merge_once=size == 3)
        late += sum(found[1] for found in run_local(ranks, lambda comm, case=case: run(comm, case)))
    assert late > 0  # else nothing was merged late, and half of the rule was not seen


@pytest.mark.mpi
@pytest.mark.slow
def test_processes() -> None:
    job = mpiexec(4, "bits.py", "shm", "mpi", timeout=90)
    assert job.returncode == 0, job.output
    assert job.output.count("ok") == 4, job.output
    assert "ok, 0 late" not in job.output
    for dtype in DTYPES:  # and each transport gives what threads give
        final = run_local(4, lambda comm, dtype=dtype: evolve(comm, Case(4, 1, dtype, 1001, 4)))
        assert {digest(model) for model in final} == {digest(final[0])}
        assert job.output.count(f"rank 0: {dtype} {digest(final[0])}\n") == 2, job.output
