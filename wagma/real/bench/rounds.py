"""Timed rounds of a collective on ranks of one node, and as a program: those of MPI_Allreduce.

`mpiexec -n N PYTHON -m mpi4py .../rounds.py SPECIFICATION` measures the MPI library of *any* Python that has mpi4py and numpy: this file
imports nothing else, so that a library can be compared with that wagma is not built against. One JSON line on rank 0.

How a call is timed, all kernels alike:

- All ranks agree on an instant a few milliseconds ahead and begin their calls then (the window scheme of Hunold and Carpen-Amarie,
  TPDS 2016; here the ranks share a clock). A barrier in front of each call would not do: whoever leaves it first begins while others
  have not been scheduled yet, and a library that spins in it takes the cores from a rank whose call before is not over. So ranks also
  *sleep* until everybody has returned. They spin through the last moments before the instant if each has a core of its own; where
  they do not, whoever spun would keep another rank from waking up.
- An iteration takes from the first rank's call to the last rank's return, on the clock that the ranks share. Whatever delays a rank
  in between counts: that it is not scheduled because another one spins is what the kernel costs on such a machine.
- With a sleeper the figure is that of the others: from the first call to the last return without that rank, which is late in each call.
- The first calls of a block are not counted. Blocks of different kernels take turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

LIMIT_S = 120.0  # until all ranks have returned from a call
POLL_S = 100e-6  # between two looks whether all are here, for each rank that a core has to serve
MARGIN_S = 1e-3  # from the last rank's coming to the common start, besides what polling takes
SPIN_S = 300e-6  # what a timer may be late by
WARM_UP = 3  # calls of a block that do not count
LEAST = 5  # calls of a block that do, however long they take
SLOWEST = 2  # the same where they take very long
PATIENCE = 2  # that is, more than so many limits beyond the limit
BLOCK_S = 1.0
HOPELESS_S = 1.0

Call = Callable[[], object]
Times = npt.NDArray[np.int64]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Rounds:
    """Has all ranks of a communicator begin at once, again and again, and takes the times."""

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self.comm = comm
        self._largest = MPI.MAX
        self._spins = comm.size <= cores()
        self._poll_s = POLL_S * max(1.0, comm.size / cores())
        # Each step of the library's tree may have to wait for the next look.
        self._margin_ns = int(1e9 * (MARGIN_S + self._poll_s * (1 + comm.size.bit_length())))

    def line_up(self, enough: bool = False) -> tuple[int, bool]:
        """Wait until all ranks are here, then until the instant that they agree on, which is returned (CLOCK_MONOTONIC, ns).

        The other value: whether any rank has said that it has `enough`, the same on all ranks.
        """
        start, enough = self._agree(enough)
        while (left := start - time.monotonic_ns()) > 0:
            if not self._spins:
                time.sleep(left * 1e-9)
            elif left * 1e-9 > SPIN_S:
                time.sleep(left * 1e-9 - SPIN_S)
        return start, enough

    def _agree(self, enough: bool) -> tuple[int, bool]:
        """The start, the same number on all ranks: a margin after the last of them came."""
        own, latest = np.array([time.monotonic_ns(), enough]), np.zeros(2, np.int64)
        request = self.comm.Iallreduce(own, latest, self._largest)
        deadline = time.monotonic() + LIMIT_S
        while not request.Test():
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {self.comm.rank}: not all {self.comm.size} ranks came within {LIMIT_S:g} s")
            time.sleep(self._poll_s)
        return int(latest[0]) + self._margin_ns, bool(latest[1])

    def run(self, call: Call, most: int, delay_s: float = 0.0, limit_s: float = BLOCK_S) -> tuple[Times, Times] | None:
        """Begin and end of each call of each rank, as arrays (rank, iteration), on rank 0; None elsewhere.

        As many iterations as take `limit_s` seconds with all that is around them, but at least LEAST and at most `most`; where single
        calls take so long that even these would last many times the limit (libraries that spin, on ranks that share cores), fewer: SLOWEST.
        `delay_s`: this rank sleeps so long in every iteration before it calls.
        """
        begins: list[int] = []
        ends: list[int] = []
        limit = time.monotonic() + limit_s
        warm = 0
        while len(begins) < most:
            now = time.monotonic()
            least = LEAST if now < limit + PATIENCE * limit_s else SLOWEST
            start, enough = self.line_up(now > limit and (warm < WARM_UP or len(begins) >= least))
            if enough and warm == WARM_UP:
                break
            if enough:  # it has warmed up for long enough
                warm = WARM_UP
            if delay_s > 0:
                time.sleep(max(0.0, delay_s - (time.monotonic_ns() - start) * 1e-9))
            begin = time.monotonic_ns()
            call()
            end = time.monotonic_ns()
            if warm < WARM_UP:
                warm += 1
            else:
                begins.append(begin)
                ends.append(end)
        self.line_up()
        both = self.comm.gather((begins, ends))
        return None if both is None else (np.array([b for b, _ in both]), np.array([e for _, e in both]))


def elapsed(begins: Times, ends: Times, sleeper: int | None = None) -> list[float]:
    """Seconds of each iteration, from the first call to the last return; `sleeper` does not count."""
    kept = [rank for rank in range(len(begins)) if rank != sleeper]
    return [float(s) for s in (ends[kept].max(axis=0) - begins[kept].min(axis=0)) * 1e-9]


class Allreduce:
    """MPI_Allreduce, a sum, over this rank's group. mode "tensor": from one buffer into another; "resident": in place."""

    def __init__(self, group: Any, count: int, dtype: str, mode: str) -> None:
        from mpi4py import MPI

        self._group = group
        self._own = np.ones(count, dtype)
        self._sum = self._own if mode == "resident" else np.zeros(count, dtype)
        self._source = MPI.IN_PLACE if mode == "resident" else self._own
        self._operation = MPI.SUM
        self()
        # The kernel that is compared is checked, too: a fast wrong sum would make a good one look slow.
        if not (self._sum == group.size).all():
            raise RuntimeError(f"MPI_Allreduce of {group.size} times 1 gave {self._sum.min()} to {self._sum.max()}")
        # In place, sums of sums would grow beyond all numbers, on which processors may take longer. All pages are there by now.
        self._own.fill(0)

    def __call__(self) -> None:
        """Add up once."""
        self._group.Allreduce(self._source, self._sum, self._operation)


def sleeper_delay(comm: Any, late_s: float) -> float:
    """What this rank sleeps in each iteration: the last rank is the late one."""
    return late_s if comm.rank == comm.size - 1 else 0.0


def block(
    rounds: Rounds, call: Call, iterations: int, late_s: float, *, rested: bool = False, **what: Any
) -> dict[str, Any] | None:
    """Run a block; on rank 0 its seconds, with `what` it is. rested: all ranks sleep for late_s, and none is late."""
    comm = rounds.comm
    times = rounds.run(call, iterations, late_s if rested else sleeper_delay(comm, late_s))
    if times is None:
        return None
    sleeper = comm.size - 1 if late_s > 0 and not rested else None
    return {**what, "late_s": late_s, "rested": rested, "seconds": elapsed(*times, sleeper)}


def report(kind: str, value: Any) -> None:
    """One line for whoever started the job."""
    print(json.dumps({kind: value}), flush=True)


def check_size(comm: Any, specification: Mapping[str, Any]) -> None:
    """Raise RuntimeError if the ranks do not know of each other: then mpiexec is that of another MPI library than mpi4py's."""
    if comm.size != specification["ranks"]:
        raise RuntimeError(
            f"{library()} has {comm.size} ranks instead of {specification['ranks']}: mpiexec is another library's"
        )


def library() -> str:
    """The MPI library in a few words."""
    from mpi4py import MPI

    text = MPI.Get_library_version().rstrip("\0").splitlines()[0]
    return " ".join(text.replace("Version:", "").split()).split(",")[0]


def measure_allreduce(comm: Any, specification: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All blocks of MPI_Allreduce that the specification asks for; none after one whose calls took longer than HOPELESS_S.

    A library that spins on ranks that share cores may take seconds for what takes milliseconds in another of its variants.
    """
    rounds = Rounds(comm)
    group = comm.Split(specification["colours"][comm.rank], comm.rank)
    found: list[dict[str, Any] | None] = []
    hopeless = False
    for count, iterations in specification["counts"]:
        for mode in [mode for _ in range(specification["blocks"]) for mode in ("tensor", "resident")]:
            if hopeless:
                break
            for late_s in lateness(specification):
                call = Allreduce(group, count, specification["dtype"], mode)
                done = block(rounds, call, iterations, late_s, kernel="mpi", mode=mode, count=count)
                found.append(done)
                hopeless = comm.bcast(done is not None and float(np.median(done["seconds"])) > HOPELESS_S)
    group.Free()
    return [one for one in found if one is not None]


def lateness(specification: Mapping[str, Any]) -> Sequence[float]:
    """Balanced first, then with the late rank, if there is to be one."""
    return [0.0, specification["late_s"]] if specification["late_s"] > 0 else [0.0]


def measure_partial(comm: Any, specification: Mapping[str, Any]) -> list[dict[str, Any]]:
    """MPI_Allreduce over all ranks, with the ranks coming one after the other.

    The smallest size first, and no larger one after a mean latency above the specification's hopeless_s: a library that spins, on ranks
    that share cores, may take a minute for a call that takes another one milliseconds.
    """
    rounds = Rounds(comm)
    found: list[dict[str, Any]] = []
    hopeless = False
    for number, size in enumerate(sorted(specification["sizes"])):
        if not hopeless:
            call = Allreduce(comm, size // 4, "float32", "tensor")
            done = staggered(rounds, call, specification, specification["limit_s"], kernel="mpi", bytes=size)
            found += [] if done is None else [done]
            hopeless = comm.bcast(done is not None and float(np.mean(done["seconds"])) > specification["hopeless_s"])
        if comm.rank == 0:
            report("progress", [number + 1, len(specification["sizes"])])
    return found


def staggered(
    rounds: Rounds, call: Call, specification: Mapping[str, Any], limit_s: float = float("inf"), **what: Any
) -> dict[str, Any] | None:
    """Rank r calls r + 1 steps after the start; of each iteration the mean over ranks of the time from a rank's call to its return.

    limit_s: fewer iterations than asked for if they take longer, as in `Rounds.run`.
    """
    delay_s = (rounds.comm.rank + 1) * specification["step_s"]
    times = rounds.run(call, specification["iterations"], delay_s, limit_s)
    return None if times is None else {**what, "seconds": ((times[1] - times[0]) * 1e-9).mean(axis=0).tolist()}


def main(arguments: Sequence[str]) -> None:
    """Measure what the JSON in the first argument says."""
    import mpi4py

    mpi4py.rc.thread_level = "single"  # no locks: MPI at its best
    from mpi4py import MPI

    specification = json.loads(arguments[0])
    check_size(MPI.COMM_WORLD, specification)
    measure = {"collective": measure_allreduce, "partial": measure_partial}[specification["benchmark"]]
    blocks = measure(MPI.COMM_WORLD, specification)
    if MPI.COMM_WORLD.rank == 0:
        report("result", {"library": library(), "blocks": blocks})


if __name__ == "__main__":
    main(sys.argv[1:])
