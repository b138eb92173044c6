"""Several collectives on one process: two sub-communicators at once and COMM_WORLD beside them ("beside"); what they hold ("memory")."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np
from ranks import COMM, RANK, say

from wagma import GroupAllreduce
from wagma.real.bench.collective import held_bytes

COUNT = 9_000_000  # so long that malloc gives it back to the system: it keeps up to 32 MiB for the next array
SIZE = 4 * COUNT  # bytes of a model


def beside() -> None:
    """Hybrid parallelism: parts of a model within pairs, its mean over all; then two engines on the same communicator."""
    pair = COMM.Split(RANK % 2, RANK)
    parts, whole, again = (np.zeros(1000) for _ in range(3))
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(GroupAllreduce(comm, model, comm.size, period, timeout_s=30.0))
            for comm, model, period in ((pair, parts, 1), (COMM, whole, 2), (COMM, again, "never"))
        )
        for t in range(40):
            parts[:] = 100 * RANK + t
            first.average()
            assert (parts == 100 * (RANK % 2 + 1) + t).all(), parts  # ranks r and r + 2
            whole[:] = RANK + t
            second.average()
            if t % 2:
                assert (whole == 1.5 + t).all(), whole
            again[:] = 7.0
            third.average()
            assert (again == 7.0).all() or t < 2, again  # the zeros that it began with are gone
        used = [first.transport, second.transport, third.transport]
    say(f"ok, {used}")


def all_bytes() -> int:
    """Of all ranks, shared pages counted once, as the benchmark counts them."""
    total: int = COMM.allreduce(held_bytes(COMM.size))
    return total


def memory() -> None:
    """After a first collective, which imports what there is to import."""
    with GroupAllreduce(COMM, np.zeros(10, np.float32), timeout_s=30.0) as collective:
        collective.average()
    for resident in (False, True):
        before = all_bytes()
        model = np.ones(COUNT, np.float32)
        with GroupAllreduce(COMM, model, COMM.size, 4, resident=resident, timeout_s=30.0) as collective:
            if resident:
                del model
            for _ in range(8):
                collective.average()
            held = (all_bytes() - before) / COMM.size / SIZE
            if RANK == 0:
                say(f"{'resident' if resident else 'tensor'}: {collective.copies} said, {held - 1:.3f} found")
        model = collective = None  # what it held is to be gone before the next one is measured
        COMM.Barrier()


beside() if sys.argv[1] == "beside" else memory()
