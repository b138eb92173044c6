"""A ping-pong between two ranks: what a message costs here, as keys of a scenario's `[network]`.

`mpiexec -n 2 python -m mpi4py -m wagma.real.measure` prints them as JSON. Overheads are part of the latency, which a ping-pong cannot
tell apart: they are reported as 0.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from wagma.errors import InputError

SIZES = (1, 1 << 12, 1 << 16, 1 << 20)  # bytes
REPETITIONS = 200
WARM_UP = 20


def pingpong(comm: Any, size: int) -> float:
    """Median one-way time in ns of a message of `size` bytes between ranks 0 and 1 of an mpi4py communicator."""
    outgoing, incoming = np.zeros(size, np.uint8), np.empty(size, np.uint8)
    times = []
    for repetition in range(WARM_UP + REPETITIONS):
        before = time.perf_counter_ns()
        if comm.rank == 0:
            comm.Send(outgoing, 1)
            comm.Recv(incoming, 1)
        else:
            comm.Recv(incoming, 0)
            comm.Send(outgoing, 0)
        if repetition >= WARM_UP:
            times.append((time.perf_counter_ns() - before) / 2)
    return float(np.median(times))


def measure(comm: Any) -> dict[str, float]:
    """LogGP keys, in ns and ns per byte: the latency of one byte, and the slope of the largest sizes above it."""
    if comm.size != 2:
        raise InputError(f"ranks = {comm.size}: a ping-pong needs 2")
    one_way = {size: pingpong(comm, size) for size in SIZES}
    latency = one_way[1]
    per_byte = max(0.0, (one_way[SIZES[-1]] - latency) / (SIZES[-1] - 1))
    return {"latency_ns": latency, "overhead_ns": 0.0, "gap_ns": 0.0, "gap_per_byte_ns": per_byte}


def main() -> None:
    """Measure on COMM_WORLD; rank 0 prints."""
    from mpi4py import MPI

    network = measure(MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(network))


if __name__ == "__main__":
    main()
