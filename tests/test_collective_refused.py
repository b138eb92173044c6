"""What ranks cannot agree on, or cannot have, is one line, the same on every rank, and no rank waits for another one."""

from __future__ import annotations

import re

import pytest
from mpi_launch import mpiexec

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

SMALL = r"WagmaError: rank 0: shared memory: \d+ MB cannot be had: File too large \(limits of files' sizes .*"
EXPECTED = {
    "small shm": SMALL,
    "small auto": SMALL,
    "apart shm": r"WagmaError: transport = 'shm': rank 2 is not on the machine \(or in the container\) of rank 0; use 'auto' or 'mpi'",
    "apart auto": "works: MPI",
    "closed shm": r"WagmaError: rank 1: shared memory: /proc/1073741824/fd/\d+ cannot be opened: No such file or directory",
    "closed auto": "works: MPI",
    "count": "InputError: rank 1 has 99999 elements of float32, .*; rank 0 has 100000 elements of float32, .*: all ranks need the same",
    "dtype": "InputError: rank 1 has 100000 elements of float64, .*; rank 0 has 100000 elements of float32, .*",
    "bits": "InputError: rank 1 has 100000 elements of bfloat16, .*; rank 0 has 100000 elements of float16, .*",
    "resident": "InputError: rank 1 has .* resident = True, .*; rank 0 has .* resident = False, .*",
    "transport": "InputError: rank 1 has .* transport = mpi; rank 0 has .* transport = shm: all ranks need the same",
    "seed": "InputError: rank 1 has .* seed = 1, .*; rank 0 has .* seed = 0, .*",
    "merge_once": "InputError: rank 1 has .* merge_once = True, .*; rank 0 has .* merge_once = False, .*",
    "who may": "InputError: rank 1 has .* initiators = majority, .*; rank 0 has .* initiators = solo, .*",
    "unknown": "InputError: rank 1: transport = 'tcp': must be one of auto, shm, mpi, ipc, cuda-mpi",
    "negative": r"InputError: rank 1: watchdog_s = -1\.0: must be from 0 \(never\) to 1e\+07",
    "endless": r"InputError: rank 1: watchdog_s = nan: must be from 0 \(never\) to 1e\+07",
    "no seed": r"InputError: rank 1: seed = -1: must be a whole number from 0 to 2\^63 - 1",
    "too many": "InputError: rank 1: initiators = 5: must be 'solo', 'majority' or 1 to 4",
    "word": "InputError: rank 1: initiators = 'all': must be 'solo', 'majority' or 1 to 4",
    "shm": "works: shared memory",
    "mpi": "works: MPI",
}


def test_every_rank_says_the_same_in_one_line() -> None:
    job = mpiexec(4, "refused.py", "shm", "mpi", timeout=90)
    assert job.returncode == 0, job.output
    told = [line for line in job.output.splitlines() if line]
    assert len(told) == 4 * len(EXPECTED), job.output
    for name, message in EXPECTED.items():
        lines = [line for line in told if re.match(rf"rank \d: {name}: ", line)]
        assert sorted(line[:7] for line in lines) == [f"rank {rank}:" for rank in range(4)], (name, job.output)
        for line in lines:
            assert re.fullmatch(message, line.removeprefix(f"{line[:7]} {name}: ")), (name, line)
