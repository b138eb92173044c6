"""A rank that stays away from a sync ("absent"), or is stopped by the system ("stopped"): what stands is told without a debugger."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import numpy as np
from ranks import COMM, RANK

from wagma import GroupAllreduce

LATE = 1
WATCHDOG_S = 0.4
AWAY_S = 2.8  # progress threads look once a second
ASKED_S = 1.4  # between two reports of the watchdog
PIDS = COMM.allgather(os.getpid())


def say(text: str) -> None:
    """Where reports go, too: what one process writes to two streams may come in another order."""
    os.write(2, f"rank {RANK}: {text}\n".encode())


def absent() -> None:
    """In two engines at once, one on each transport, all wait in version 1 for rank 1."""
    engines = [
        GroupAllreduce(COMM, np.zeros(1000), 2, 2, transport=transport, watchdog_s=WATCHDOG_S, timeout_s=40.0)
        for transport in ("shm", "mpi")
    ]
    for engine in engines:
        engine.average()
    COMM.Barrier()
    if RANK == LATE:
        stay_away()
    elif RANK == 0:
        threading.Timer(ASKED_S, os.kill, (PIDS[LATE], signal.SIGUSR1)).start()
    threads = [threading.Thread(target=engine.average) for engine in engines[1:]]
    for thread in threads:
        thread.start()
    engines[0].average()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.close()
    say("done")


def stay_away() -> None:
    """The function that a user would want to see named."""
    end = time.monotonic() + AWAY_S
    while time.monotonic() < end:
        time.sleep(0.01)
    say("comes")


def stopped(transport: str) -> None:
    """Rank 1 is stopped somewhere in one of many long averages, and goes on later."""
    with GroupAllreduce(COMM, np.zeros(4_000_000), 2, 1, transport=transport, watchdog_s=WATCHDOG_S, timeout_s=40.0) as engine:
        for t in range(8):
            if t == 3 and RANK == 0:
                os.kill(PIDS[LATE], signal.SIGSTOP)
                threading.Timer(1.5, lambda: (say("lets it go on"), os.kill(PIDS[LATE], signal.SIGCONT))).start()
            engine.average()
    say(f"{transport} done")


if sys.argv[1] == "absent":
    absent()
else:
    stopped(sys.argv[2])
