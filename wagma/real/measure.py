"""The ranks of `wagma measure`: `mpiexec -n N python -m mpi4py -m wagma.real.measure SPECIFICATION`; one JSON line on rank 0.

Without a specification, on two ranks: LogGP of MPI messages alone, as keys of a scenario's `[network]`, in a second.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wagma.errors import InputError
from wagma.real.bench.kernels import run_on_ranks
from wagma.real.bench.rounds import Rounds, library
from wagma.real.measuring import letters, machine, messages
from wagma.real.measuring.exchanges import Exchanges

QUICK_BYTES = 1 << 20
QUICK_REPETITIONS = 100
#: Models beside the one that is asked for: what the table shows of the time against the size.
COUNTS = (1, 1 << 12, 1 << 16, 1 << 20)

Progress = Callable[[int, int], None]


def measure(comm: Any, specification: Mapping[str, Any], progress: Progress | None = None) -> dict[str, Any] | None:
    """Samples of everything, in seconds, on rank 0; None elsewhere.

    specification: ranks, transports ("shm", "mpi"), count (float32 of the model), repetitions, work_s (after each collective).
    """
    count, repetitions = specification["count"], specification["repetitions"]
    pair, alone = comm.Split(0 if comm.rank < 2 else 1, comm.rank), comm.Split(comm.rank, 0)
    work_s = specification["work_s"]
    rounds = Rounds(comm)  # whoever is no part of a pair sleeps until the others are through
    steps = 1 + 2 * len(specification["transports"]) + 2
    done = 0

    def step() -> None:
        nonlocal done
        rounds.line_up()
        done += 1
        if progress is not None:
            progress(done, steps)

    found: dict[str, Any] = {"library": library(), "transports": {}}
    found["bandwidth"] = machine.bandwidth(comm)
    found["adding"], found["oversleeping"] = machine.adding(count, repetitions), machine.oversleeping(repetitions)
    step()
    for transport in specification["transports"]:
        one: dict[str, Any] = {}
        if comm.rank == 0:
            one["alone"] = Exchanges(alone, transport, 0.0).call(1, repetitions)
        if comm.rank < 2:
            one["pair"] = _exchanges(Exchanges(pair, transport, work_s), count, repetitions, COUNTS)
        step()
        if comm.size > 2:
            one["all"] = _exchanges(Exchanges(comm, transport, work_s), count, repetitions, (1,))
        step()
        found["transports"][transport] = one
    found["letters"] = found["messages"] = None
    if comm.rank < 2:
        found["letters"] = {
            "short": letters.samples(pair, 1, 2 * repetitions, work_s), "model": letters.samples(pair, count, 2 * repetitions, work_s)
        }  # fmt: skip
    step()
    if comm.rank < 2:
        found["messages"] = messages.samples(pair, 4 * count, 4 * repetitions)
    step()
    pair.Free()
    alone.Free()
    return found if comm.rank == 0 else None


def _exchanges(probes: Exchanges, count: int, repetitions: int, counts: tuple[int, ...]) -> dict[str, Any]:
    """All probes on these ranks; `counts`: of which sizes the time together is taken, beside `count`."""
    sizes = dict.fromkeys(sorted({*counts, count}))
    together = {str(4 * size): probes.together(size, _fewer(repetitions, size)) for size in sizes}
    return {
        "together": together,
        "asleep": probes.asleep(count, 2 * repetitions),
        "computing": probes.passive(True, repetitions),
        "sleeping": probes.passive(False, repetitions),
    }


def _fewer(repetitions: int, count: int) -> int:
    """Of large models, which take longer and vary less."""
    return max(5, repetitions if count <= 1 << 16 else repetitions // 3)


def quick(comm: Any) -> dict[str, float] | None:
    """LogGP keys of MPI messages, in ns and ns per byte, medians; on rank 0 of the two, None on the other."""
    if comm.size != 2:
        raise InputError(f"ranks = {comm.size}: a ping-pong needs 2")
    found = messages.samples(comm, QUICK_BYTES, QUICK_REPETITIONS)
    if found is None:
        return None
    median = {name: 1e9 * float(np.median(values)) for name, values in found.items()}
    overhead = min((median["sender"] + median["receiver"]) / 2, median["short"] / 2)
    return {
        "latency_ns": median["short"] - 2 * overhead,
        "overhead_ns": overhead,
        "gap_ns": median["gap"],
        "gap_per_byte_ns": max(0.0, (median["long"] - median["short"]) / (QUICK_BYTES - 1)),
    }


def main() -> None:
    """Measure on COMM_WORLD; rank 0 prints."""
    if sys.argv[1:]:
        run_on_ranks(measure, sys.argv[1:])
        return
    from mpi4py import MPI

    network = quick(MPI.COMM_WORLD)
    if network is not None:
        print(json.dumps(network))


if __name__ == "__main__":
    main()
