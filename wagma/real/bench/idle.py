"""The ranks of `wagma bench idle`: what a progress thread costs that has nothing to do, and how soon it is there when it has.

`mpiexec -n N python -m mpi4py -m wagma.real.bench.idle SPECIFICATION`; one JSON line on rank 0. A thread's processor time is read from its
own clock, in nanoseconds; the threads are those that have come to be with the collective, whatever they are called.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wagma.errors import WagmaError
from wagma.real.bench.kernels import TIMEOUT_S, Wagma, run_on_ranks
from wagma.real.bench.rounds import Rounds
from wagma.real.collective import GroupAllreduce

#: Linux: the clock of a thread's processor time, from its number (CPUCLOCK_SCHED of CPUCLOCK_PERTHREAD).
_THREAD_CLOCK = 0b110
_COUNT = 1000  # elements: an activation carries none of them
#: An activation comes so long after all ranks have begun to compute; they go on as long again afterwards.
BEFORE_S = 5e-3


def threads() -> set[int]:
    """The numbers of this process's threads."""
    return {int(name) for name in os.listdir("/proc/self/task")}


def processor_s(numbers: Sequence[int]) -> float:
    """Processor seconds that threads have used since they began."""
    return sum(time.clock_gettime_ns((~number << 3) | _THREAD_CLOCK) for number in numbers) * 1e-9


def compute_until(instant_ns: int, work: Any) -> None:
    """Keep this thread's core busy, in numpy and not in the interpreter."""
    while time.monotonic_ns() < instant_ns:
        np.multiply(work, 1.0000001, out=work)


class Idle:
    """One collective, with nothing to do but what is measured."""

    def __init__(self, comm: Any, specification: Mapping[str, Any]) -> None:
        self._comm = comm
        self._what = specification
        self._rounds = Rounds(comm)
        self._work = np.ones(10_000)

    def computing(self, own: Sequence[int]) -> float:
        """The share of a core that these threads use while all ranks compute."""
        start, _ = self._rounds.line_up()
        before = processor_s(own)
        compute_until(start + int(1e9 * self._what["seconds"]), self._work)
        return self._share(own, before, start)

    def waiting(self, options: Mapping[str, Any]) -> tuple[float, float]:
        """The same while all ranks but the last wait for that one at a sync, and the share of the threads that wait.

        The waiting thread may well be the one that drives the transport meanwhile, so its share counts as well.
        """
        before = threads()
        model = np.ones(_COUNT, np.float32)
        collective = GroupAllreduce(self._comm, model, self._comm.size, 1, timeout_s=TIMEOUT_S, **options)
        own, caller = sorted(threads() - before), [os.getpid()]
        start, _ = self._rounds.line_up()
        used = processor_s(own), processor_s(caller)
        if self._comm.rank == self._comm.size - 1:
            time.sleep(self._what["seconds"])
        collective.average()
        shares = self._share(own, used[0], start), self._share(caller, used[1], start)
        collective.close()
        return shares

    def _share(self, numbers: Sequence[int], before: float, start: int) -> float:
        return (processor_s(numbers) - before) / ((time.monotonic_ns() - start) * 1e-9)

    def activations(self, wagma: Wagma) -> list[float] | None:
        """Seconds from an arrival at the activator to the start at each passive rank, all of which compute; on rank 0."""
        for number in range(self._what["activations"]):
            start, _ = self._rounds.line_up()
            first = number % self._comm.size == self._comm.rank
            compute_until(start + int(1e9 * BEFORE_S * (1 if first else 2)), self._work)
            wagma()
        self._rounds.line_up()
        records = self._comm.gather(wagma.collective.take_records())
        return None if records is None else latencies(records)


def latencies(records: Sequence[Any]) -> list[float]:
    """From all ranks' (executions, iterations): of each version, from its first arrival to the start at each rank that had not arrived.

    The clock is that of the node. A rank that has arrived before it starts is none that an activation had to reach.
    """
    arrivals = [{one["iteration"]: one["arrival_ns"] for one in iterations} for _, iterations in records]
    found = []
    for rank, (executions, _) in enumerate(records):
        for execution in executions:
            version = execution["version"]
            came = [mine[version] for mine in arrivals if version in mine]
            own = arrivals[rank].get(version)
            if came and (own is None or own > execution["started_ns"]):
                found.append((execution["started_ns"] - min(came)) * 1e-9)
    return found


def measure(
    comm: Any, specification: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any] | None:
    """Shares of a core by rank, and latencies of activations; on rank 0, None elsewhere."""
    idle = Idle(comm, specification)
    before = threads()
    options = specification["options"]
    wagma = Wagma(comm, _COUNT, "float32", "tensor", specification["group_size"], {**options, "record": True})
    own = sorted(threads() - before)
    if not own:
        raise WagmaError(f"rank {comm.rank}: the collective has started no thread whose processor time could be measured")
    computing = idle.computing(own)
    found = idle.activations(wagma)
    transport = wagma.transport
    wagma.close()
    waiting, caller = idle.waiting(options)
    shares = comm.gather((computing, waiting, caller))
    if progress is not None:
        progress(1, 1)
    if shares is None:
        return None
    last = comm.size - 1  # it is waited for
    return {
        "transport": transport,
        "computing": [share[0] for share in shares],
        "waiting": [share[1] for share in shares],
        "callers": [share[2] for rank, share in enumerate(shares) if rank != last],
        "latencies_s": found,
    }


if __name__ == "__main__":
    run_on_ranks(measure, sys.argv[1:])
