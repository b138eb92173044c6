"""MPI messages between two ranks, taken apart as LogP measurements do (Culler, Liu, Martin, Yoshikawa, IEEE Micro 1996).

Overheads are what a call keeps the processor: of a sender, one message of a burst; of a receiver, a message that has long been there.
The latency is what is left of half a round trip. The gap is what separates messages of a burst at the receiver.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Messages of a burst: so many that the sender cannot hide them all in buffers, so few that no library blocks it.
BURST = 64
#: A delayed receive finds its message there after so long.
DELAY_S = 1e-3
WARM_UP = 10


def round_trip(comm: Any, size: int, repetitions: int) -> list[float]:
    """Seconds of half a round trip of `size` bytes between ranks 0 and 1, one value for each repetition."""
    outgoing, incoming = np.zeros(size, np.uint8), np.empty(size, np.uint8)
    times = []
    for repetition in range(WARM_UP + repetitions):
        before = time.perf_counter_ns()
        if comm.rank == 0:
            comm.Send(outgoing, 1)
            comm.Recv(incoming, 1)
        else:
            comm.Recv(incoming, 0)
            comm.Send(outgoing, 0)
        if repetition >= WARM_UP:
            times.append((time.perf_counter_ns() - before) * 0.5e-9)
    return times


def burst(comm: Any, repetitions: int) -> tuple[list[float], list[float]]:
    """(sender's overhead, gap) in seconds for each burst of one-byte messages; the first on rank 0, the second on rank 1, else empty."""
    from mpi4py import MPI

    buffers = [np.zeros(1, np.uint8) for _ in range(BURST)]
    overheads: list[float] = []
    gaps: list[float] = []
    for repetition in range(WARM_UP + repetitions):
        if comm.rank == 0:
            before = time.perf_counter_ns()
            requests = [comm.Isend(one, 1) for one in buffers]
            taken = time.perf_counter_ns() - before
            MPI.Request.Waitall(requests)
            comm.Recv(buffers[0], 1)  # before the next one begins, all of this one has been taken in
        else:
            requests = [comm.Irecv(one, 0) for one in buffers]
            requests.pop(0).Wait()
            before = time.perf_counter_ns()
            MPI.Request.Waitall(requests)
            taken = time.perf_counter_ns() - before
            comm.Send(buffers[0], 0)
        if repetition >= WARM_UP:
            (overheads if comm.rank == 0 else gaps).append(taken * 1e-9 / (BURST if comm.rank == 0 else BURST - 1))
    return overheads, gaps


def delayed_receive(comm: Any, repetitions: int) -> list[float]:
    """Seconds that a receive keeps rank 1 whose message has been there for a while; empty on rank 0."""
    one, times = np.zeros(1, np.uint8), []
    for _ in range(WARM_UP + repetitions):
        if comm.rank == 0:
            comm.Send(one, 1)
            comm.Recv(one, 1)
        else:
            time.sleep(DELAY_S)
            comm.Iprobe(0)  # what has come is taken in by any call: that is progress, and no part of the receive
            before = time.perf_counter_ns()
            comm.Recv(one, 0)
            times.append((time.perf_counter_ns() - before) * 1e-9)
            comm.Send(one, 0)
    return times[WARM_UP:]


def samples(comm: Any, size: int, repetitions: int) -> dict[str, list[float]] | None:
    """All of it between the two ranks of `comm`, in seconds, the long message being of `size` bytes; on rank 0, None on the other."""
    short, long = round_trip(comm, 1, repetitions), round_trip(comm, size, max(5, repetitions // 4))
    overheads, gaps = burst(comm, repetitions)
    received = delayed_receive(comm, repetitions)
    found = comm.gather((overheads, gaps, received))
    if found is None:
        return None
    return {"short": short, "long": long, "sender": found[0][0], "gap": found[1][1], "receiver": found[1][2]}
