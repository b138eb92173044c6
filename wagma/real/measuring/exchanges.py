"""The collective itself, taken apart: what the ranks of a pair, or all of them, see of one average, by when each of them comes.

Each figure is of calls of the engine that trains, over the transport that trains. As in training a call follows some milliseconds of
sleep and is followed by work: Linux likes to run whoever is woken on the core of the one that wakes it, and then one of the two has to wait
until the other one sleeps, or the next tick comes, even if another core is idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from wagma.real.bench.idle import compute_until
from wagma.real.bench.rounds import Rounds
from wagma.real.collective import GroupAllreduce

TIMEOUT_S = 60.0
WARM_UP = 3
#: Ranks that do not come together come so long after the others, who have long gone to sleep by then.
LATE_S = 6e-3


class Exchanges:
    """Probes on the ranks of `comm`, all of which take part. work_s: what a rank computes after each call, at once, as training does."""

    def __init__(self, comm: Any, transport: str, work_s: float) -> None:
        self._comm = comm
        self._rounds = Rounds(comm)
        self._transport = transport
        self._work_ns = int(1e9 * work_s)
        self._work = np.ones(2_000)

    def together(self, count: int, repetitions: int) -> list[float] | None:
        """Seconds from the last call to the last return where all come at once, to a sync of `count` float32, and then rest; on rank 0."""
        return self._syncs(count, repetitions, lambda _: 0.0, 0)

    def asleep(self, count: int, repetitions: int) -> list[float] | None:
        """The same where one rank, each in turn, comes LATE_S after the others, and all go to work after it."""
        rank, size = self._comm.rank, self._comm.size
        return self._syncs(count, repetitions, lambda number: LATE_S if number % size == rank else 0.0, self._work_ns)

    def call(self, count: int, repetitions: int) -> list[float]:
        """Seconds of a call on this rank's communicator, while nobody else is asked: for one of a single rank."""
        collective, times = self._collective(count, sync_period="never"), []
        for _ in range(WARM_UP + repetitions):
            time.sleep(LATE_S / 4)
            began = time.monotonic_ns()
            collective.average()
            times.append((time.monotonic_ns() - began) * 1e-9)
        collective.close()
        return times[WARM_UP:]

    def _syncs(self, count: int, repetitions: int, offset_s: Callable[[int], float], work_ns: int) -> list[float] | None:
        """Of each sync, seconds from the last call to the last return; on rank 0. offset_s: by how much this rank comes too late."""
        collective = self._collective(count, sync_period=1)
        begins, ends = [], []
        for number in range(WARM_UP + repetitions):
            start, _ = self._rounds.line_up()
            _sleep_until(start + int(1e9 * offset_s(number)))
            begins.append(time.monotonic_ns())
            collective.average()
            ends.append(time.monotonic_ns())
            compute_until(ends[-1] + work_ns, self._work)
        self._rounds.line_up()
        collective.close()
        found = self._comm.gather((begins[WARM_UP:], ends[WARM_UP:]))
        if found is None:
            return None
        taken = np.array([e for _, e in found]).max(axis=0) - np.array([b for b, _ in found]).max(axis=0)
        return [float(nanoseconds) * 1e-9 for nanoseconds in taken]

    def passive(self, computing: bool, repetitions: int) -> tuple[list[float], list[float]] | None:
        """Of one rank that comes alone, in turn: seconds from its call to (the start at each passive rank, its own return); on rank 0.

        computing: the others compute meanwhile; else they sleep.
        """
        comm = self._comm
        collective = self._collective(1, sync_period="never", record=True)
        for number in range(WARM_UP + repetitions):
            start, _ = self._rounds.line_up()
            first = number % comm.size == comm.rank
            until = start + int(1e9 * LATE_S * (1 if first else 3))
            if computing:
                compute_until(until, self._work)
            else:
                _sleep_until(until)
            collective.average()
            compute_until(time.monotonic_ns() + self._work_ns, self._work)
        self._rounds.line_up()
        collective.close()
        found = comm.gather(collective.take_records())
        return None if found is None else reactions(found)

    def _collective(self, count: int, **options: Any) -> GroupAllreduce:
        """Over all ranks."""
        model = np.ones(count, np.float32)
        transport: Any = self._transport
        return GroupAllreduce(self._comm, model, self._comm.size, transport=transport, timeout_s=TIMEOUT_S, **options)


def reactions(records: list[Any]) -> tuple[list[float], list[float]]:
    """From all ranks' (executions, iterations): of each version that one rank came to alone, seconds from its arrival to the start at each
    passive rank, and to its own return. Versions that several had come to by then are left out.
    """
    iterations = [{one["iteration"]: one for one in mine} for _, mine in records]
    started = [{one["version"]: one["started_ns"] for one in executions} for executions, _ in records]
    starts, returns = [], []
    for version in sorted(set.intersection(*(set(mine) for mine in iterations)))[WARM_UP:]:
        arrivals = [mine[version]["arrival_ns"] for mine in iterations]
        first = int(np.argmin(arrivals))
        others = [started[rank][version] for rank in range(len(records)) if rank != first]
        if all(at < arrivals[rank] for rank, at in zip((r for r in range(len(records)) if r != first), others, strict=True)):
            starts += [(at - arrivals[first]) * 1e-9 for at in others]
            returns.append((iterations[first][version]["return_ns"] - arrivals[first]) * 1e-9)
    return starts, returns


def _sleep_until(deadline_ns: int) -> None:
    left = deadline_ns - time.monotonic_ns()
    if left > 0:
        time.sleep(left * 1e-9)
