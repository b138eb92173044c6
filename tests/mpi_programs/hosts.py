"""Two ranks on each of two hosts of tools/hosts.py: who is where, what the link does, exact averages over it, a late rank of the other."""

from __future__ import annotations

import os
import platform
import statistics
import time

import numpy as np
from averages import run
from ranks import COMM, RANK, say

import wagma
from wagma import GroupAllreduce
from wagma.core.schedule import Schedule
from wagma.real.kernel import Engine

LATE_S = 0.06
ITERATIONS = 12


def where() -> None:
    """What ranks know of their machines, and by what their models travel."""
    schedule = Schedule(COMM.size, 2, 0)
    engine = Engine(COMM, schedule, np.zeros(10, np.float32), timeout_s=20.0)
    engine.close()
    strangers = [name for name in os.listdir("/dev/shm") if name.startswith("wagma-test")]
    say(f"host {platform.node()}, local rank {wagma.local_rank()}, {engine.transport}, {strangers}")


def link() -> None:
    """A ping-pong between the hosts."""
    for size in (1, 1 << 20):
        data, times = np.zeros(size, np.uint8), []
        for _ in range(9):
            before = time.perf_counter()
            if RANK == 0:
                COMM.Send(data, 3)
                COMM.Recv(data, 3)
            elif RANK == 3:
                COMM.Recv(data, 0)
                COMM.Send(data, 0)
            times.append((time.perf_counter() - before) / 2)
        if RANK == 0:
            say(f"{size} bytes: median {statistics.median(times):.6f} s, least {min(times):.6f} s")


def averages() -> None:
    """Whole numbers, small and large, with late ranks and syncs."""
    for size, period, count, dtype in ((2, 5, 1000, "float64"), (4, 4, 300_001, "float32")):
        run(COMM, Schedule(COMM.size, size, period), count, dtype, 12, "auto")
    say("averages are exact")


def late() -> None:
    """Rank 3, of the other host, is late in each iteration: nobody waits for it, who is done averages with what it last published."""
    model = np.full(1000, float(RANK), np.float32)
    with GroupAllreduce(COMM, model, 2, "never", timeout_s=20.0) as collective:
        COMM.Barrier()
        begin, fresh = time.monotonic(), 0
        for _ in range(ITERATIONS):
            time.sleep(LATE_S if RANK == 3 else LATE_S / 10)
            fresh += collective.average().fresh
        seconds = time.monotonic() - begin
    say(f"fresh {fresh} of {ITERATIONS} in {seconds:.3f} s")


for case in (where, link, averages, late):
    case()
