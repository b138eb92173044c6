"""The ways in which a run can end; the argument names one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import numpy as np
from ranks import COMM, RANK, say

from wagma import CollectiveTimeout, GroupAllreduce, PeerFailed

MODEL = np.full(1000, float(RANK), np.float32)
FOREVER = 10**6


def average(iterations: int, at: int = -1, then=None) -> None:
    """Average under a context manager; rank 1 does `then` in iteration `at`."""
    with GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=40.0) as collective:
        for t in range(iterations):
            if t == at and RANK == 1:
                then()
            if t == 1 and iterations == FOREVER:
                say("running")
            collective.average()
            time.sleep(0.002)


def bad_batch() -> None:
    """Rank 1's own error."""
    raise ValueError("bad batch")


def main() -> None:
    """One case."""
    match sys.argv[1]:
        case "raise":
            average(FOREVER, 20, bad_batch)
        case "raise_outside":
            # No context manager: the exit handler has to tell the peers.
            collective = GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=40.0)
            for t in range(FOREVER):
                if t == 20 and RANK == 1:
                    bad_batch()
                collective.average()
        case "caught":
            # The program survives the failure of a peer, everywhere, and ends in order.
            try:
                average(FOREVER, 20, bad_batch)
            except (ValueError, PeerFailed) as error:
                say(f"caught {type(error).__name__}: {error}")
        case "kill":
            average(FOREVER, 20, lambda: os.kill(os.getpid(), signal.SIGKILL))
        case "interrupt":
            # Rank 1 stays away from a sync, so that the others are waiting inside the engine when the signal comes.
            average(FOREVER, 3, lambda: time.sleep(30))
        case "interrupt_one":
            # The signal arrives while rank 1's main thread waits inside the kernel: nobody else comes to the first sync.
            with GroupAllreduce(COMM, MODEL, 2, 1, timeout_s=40.0) as collective:
                if RANK == 1:
                    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
                else:
                    time.sleep(0.8)
                collective.average()
        case "mismatch":
            GroupAllreduce(COMM, MODEL[: 999 if RANK == 2 else 1000], 2, 4)
        case "refused":
            GroupAllreduce(COMM, MODEL.reshape(10, 100) if RANK == 2 else MODEL, 2, 4)
        case "absent":
            if RANK == 1:
                time.sleep(3)
            else:
                GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=0.5)
        case "late_at_creation":
            # The others have given up when rank 1 comes: what MPI then writes must not land in memory that is used again.
            if RANK == 1:
                time.sleep(1)
            try:
                GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=0.3)
            except CollectiveTimeout:
                say("gave up")
            arrays = [np.zeros(size, np.uint8) for size in (500, 2000) for _ in range(200)]
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                COMM.Iprobe()  # lets MPI make progress
                time.sleep(0.001)
            assert not any(array.any() for array in arrays)
            say("clean")
        case "exit":
            # No context manager, and no exception that Python would tell an exit handler of.
            collective = GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=40.0)
            for t in range(FOREVER):
                if t == 20 and RANK == 1:
                    sys.exit("bad configuration")
                collective.average()
        case "no_close":
            collective = GroupAllreduce(COMM, MODEL, 2, "never", timeout_s=40.0)
            for _ in range(10 + 20 * RANK):
                collective.average()
            say(f"done {RANK}")
        case "dropped":
            # Nothing refers to the engine any more, and the others still need this rank.
            for _ in range(3):
                GroupAllreduce(COMM, MODEL, 2, "never", timeout_s=40.0).average()
            say("done")
        case "timeout":
            with GroupAllreduce(COMM, MODEL, 2, 1, timeout_s=1.0) as collective:
                if RANK == 1:
                    time.sleep(20)
                collective.average()
        case case:
            raise SystemExit(f"no case {case}")


main()
