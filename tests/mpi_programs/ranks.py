"""What every program here starts with: stacks of a rank that hangs, and output that is not torn into pieces."""

from __future__ import annotations

import faulthandler
import os

from mpi4py import MPI

faulthandler.dump_traceback_later(float(os.environ.get("WAGMA_TEST_DUMP_AFTER_S", "50")), exit=True)

COMM = MPI.COMM_WORLD
RANK: int = COMM.rank


def say(text: str) -> None:
    """One line in one write, so that ranks do not tear each other's lines."""
    os.write(1, f"rank {RANK}: {text}\n".encode())
