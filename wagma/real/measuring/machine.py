"""What the machine does without anybody else: its memory's rate, what adding up costs, how late its timers are."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from wagma.real.bench.collective import Copies
from wagma.real.bench.rounds import Rounds
from wagma.real.modules import native

COPY_ROUNDS = 3
NAP_S = 5e-3


def bandwidth(comm: Any) -> list[float] | None:
    """Bytes per second that all cores read and write together by copying, in the better of two ways; a value a round, on rank 0."""
    rounds, copies = Rounds(comm), Copies(comm)
    found: list[list[float]] = []
    for way in Copies.WAYS:
        call = copies.make(way)
        call()
        times = rounds.run(call, COPY_ROUNDS, limit_s=0.5)
        if times is not None:
            found.append([copies.bytes / (float(taken) * 1e-9) for taken in times[1].max(axis=0) - times[0].min(axis=0)])
    copies.close()
    return max(found, key=np.median) if found else None


def adding(count: int, repetitions: int) -> list[float]:
    """Seconds for each byte that the kernel adds to a sum: one contribution of `count` float32 to another."""
    taken, own = np.ones(count, np.float32), np.zeros(count, np.float32)
    add, times = native().add, []
    for repetition in range(repetitions + 1):
        before = time.perf_counter_ns()
        add(taken, own)
        if repetition:
            times.append((time.perf_counter_ns() - before) * 1e-9 / own.nbytes)
    return times


def oversleeping(repetitions: int) -> list[float]:
    """Seconds by which a sleep of NAP_S lasts too long."""
    times = []
    for _ in range(repetitions):
        before = time.monotonic_ns()
        time.sleep(NAP_S)
        times.append((time.monotonic_ns() - before) * 1e-9 - NAP_S)
    return times
