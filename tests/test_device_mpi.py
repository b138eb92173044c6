"""Models on a device whose memory the MPI library takes: on the emulated one, whose memory any library takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_launch import mpiexec
from published import DTYPES, Case, evolve

from wagma.core.digest import digest
from wagma.real.local import run_local

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

RANKS = 5


def test_bits_are_those_of_the_host() -> None:
    """Groups of one to five, null contributions, sums beside means, spared members, kernels that take their time; then engines."""
    job = mpiexec(RANKS, "device.py", "1,3,1000,5000,600001", ",".join(DTYPES), timeout=90)
    assert job.returncode == 0, job.output
    assert job.output.count("ok, ") == RANKS, job.output
    assert "ok, 0 late" not in job.output
    assert job.output.count("device_buffers are 2 of 1000 bytes: must be 3 of 1000\n") == RANKS, job.output
    no_room = r"rank \d: rank 1: what comes from other ranks: device emulated:0: .*out of memory"
    assert len(re.findall(no_room, job.output)) == RANKS, job.output
    for dtype in DTYPES:
        (final, *_) = run_local(RANKS, lambda comm, dtype=dtype: evolve(comm, Case(RANKS, 1, dtype, 1001, 4)))
        assert job.output.count(f"rank 0: {dtype} {digest(final)}\n") == 1, job.output


ASK = "from wagma.real.modules import mpi_native; print(mpi_native().cuda_support())"
SAYS_SO = "int MPIX_Query_cuda_support(void) { return 1; }"


def test_the_library_is_asked_whether_it_takes_memory_of_devices(tmp_path: Path) -> None:
    """Neither library here was built for CUDA. One that says that it was is believed: the question is put when the program runs."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    source, library = tmp_path / "says_so.c", tmp_path / "says_so.so"
    source.write_text(SAYS_SO)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    for preloaded, answer in (("", "False"), (str(library), "True")):
        done = subprocess.run(
            [sys.executable, "-P", "-c", ASK],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"LD_PRELOAD": preloaded},
        )
        assert done.stdout.strip() == answer, done.stdout + done.stderr
