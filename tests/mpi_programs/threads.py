"""MPI without THREAD_MULTIPLE, on the ranks that the arguments name: LEVEL RANK... Shared memory does without."""

from __future__ import annotations

import os
import sys

import mpi4py

LEVEL, *RANKS = sys.argv[1:]
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) in RANKS:
    mpi4py.rc.thread_level = LEVEL

import numpy as np  # noqa: E402  after the level is chosen, as MPI is initialised by the import below
from ranks import COMM, say  # noqa: E402

from wagma import GroupAllreduce, WagmaError  # noqa: E402

try:
    GroupAllreduce(COMM, np.zeros(10, np.float32), transport="mpi", timeout_s=20.0)
except WagmaError as error:
    say(f"refused: {error}")
with GroupAllreduce(COMM, np.zeros(10, np.float32), transport="shm", timeout_s=20.0) as collective:
    for _ in range(10):
        collective.average()
    say(f"works: {collective.transport}")
