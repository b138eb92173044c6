"""The ranks of `wagma bench collective`: the kernel, MPI_Allreduce, gloo and plain copies, in turns on the same ranks.

`mpiexec -n N python -m mpi4py -m wagma.real.bench.collective SPECIFICATION`; one JSON line on rank 0. Each block makes its kernel anew
and closes it, so that none keeps a thread that another one's block would pay for.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from wagma.errors import MissingDependencyError, WagmaError
from wagma.real.bench.kernels import STORED, Wagma, run_on_ranks
from wagma.real.bench.rounds import Allreduce, Rounds, block, cores, lateness, library

#: What each core copies to find the memory's bandwidth: ResNet-50 in float32, far more than caches hold.
COPIED = 25_559_081
#: ... but all cores together no more of the memory that is free.
MOST_MEMORY = 0.25
COPY_ROUNDS = 3
SHOWN_FROM = 1 << 25  # bytes of a model: what the caller frees of a shorter one malloc may keep, which would count as a copy

Found = list[dict[str, Any]]


class Gloo:
    """torch.distributed's all_reduce over gloo, on the same group, in place in the caller's tensor."""

    def __init__(self, comm: Any, colours: list[int]) -> None:
        try:
            import torch
            import torch.distributed as dist
        except ImportError as error:
            raise MissingDependencyError(f"--against gloo needs torch, which cannot be imported ({error})") from error
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one node; a container's host name often leads nowhere
        self._folder = comm.bcast(tempfile.mkdtemp(prefix="wagma-gloo-") if comm.rank == 0 else None)
        self._comm, self._dist, self._torch = comm, dist, torch
        store = dist.FileStore(str(Path(self._folder) / "store"), comm.size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)
        for colour in dict.fromkeys(colours):  # every rank makes every group, in the same order
            members = [rank for rank in range(comm.size) if colours[rank] == colour]
            group = dist.new_group(members)
            if comm.rank in members:
                self._group, self._size = group, len(members)

    def make(self, count: int, dtype: str) -> Callable[[], object]:
        """A call on a tensor of its own, checked once."""
        tensor = self._torch.ones(count, dtype=getattr(self._torch, dtype))
        self._dist.all_reduce(tensor, group=self._group)
        if not bool((tensor == self._size).all()):
            raise WagmaError(f"gloo's all_reduce of {self._size} times 1 gave {float(tensor.min())} to {float(tensor.max())}")
        tensor.zero_()
        return lambda: self._dist.all_reduce(tensor, group=self._group)

    def close(self) -> None:
        """Collective."""
        self._dist.destroy_process_group()
        self._comm.barrier()
        if self._comm.rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)


class Copies:
    """All cores copy at once, whatever the number of ranks: the best rate at which this machine's memory takes and gives.

    Twice, for the better of both: numpy's loop with ordinary stores, and the C library's memmove, which past a threshold near the size of
    the caches writes around them.
    """

    WAYS = ("ordinary", "library")

    def __init__(self, comm: Any) -> None:
        mine = len(range(comm.rank, cores(), comm.size))  # of the cores; none if ranks outnumber them
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        count = min(COPIED, int(comm.bcast(free) * MOST_MEMORY) // (8 * cores()))
        self.bytes = 2 * 4 * count * cores()  # read and written
        self._arrays = [(np.ones(count, np.float32), np.zeros(count, np.float32)) for _ in range(mine)]
        self._pool = ThreadPoolExecutor(max(1, mine))

    def make(self, way: str) -> Callable[[], object]:
        """A call that copies all that this rank has to."""
        one: Callable[[Any], object] = _copy_ordinary if way == "ordinary" else _copy_library
        if len(self._arrays) == 1:
            return lambda: one(self._arrays[0])
        return lambda: list(self._pool.map(one, self._arrays))

    def close(self) -> None:
        """Free the arrays."""
        self._arrays.clear()
        self._pool.shutdown()


def _copy_ordinary(arrays: Any) -> None:
    np.copyto(arrays[1], arrays[0])


def _copy_library(arrays: Any) -> None:
    ctypes.memmove(arrays[1].ctypes.data, arrays[0].ctypes.data, arrays[0].nbytes)


class Measurement:
    """All blocks of one job."""

    def __init__(self, comm: Any, specification: Mapping[str, Any], progress: Callable[[int, int], None] | None) -> None:
        self._comm = comm
        self._what = specification
        self._rounds = Rounds(comm)
        self._group = comm.Split(specification["colours"][comm.rank], comm.rank)
        self._gloo = Gloo(comm, specification["colours"]) if "gloo" in specification["against"] else None
        self._found: Found = []
        self._progress = progress
        self._kernels = self._list()
        self._total = len(specification["counts"]) * specification["blocks"]
        self._done = 0

    def _list(self) -> list[tuple[str, str]]:
        kernels = [("wagma", mode) for mode in self._what["modes"]]
        if "mpi" in self._what["against"]:
            kernels += [("mpi", "tensor"), ("mpi", "resident")]
        if self._gloo is not None:
            kernels.append(("gloo", "tensor"))
        return kernels

    def run(self) -> dict[str, Any] | None:
        """The blocks on rank 0, None elsewhere."""
        try:
            for count, most in self._what["counts"]:
                for _ in range(self._what["blocks"]):
                    self._copies()
                    for kernel, mode in self._kernels:
                        for late_s in lateness(self._what):
                            self._block(kernel, mode, count, most, late_s)
                        if kernel == "wagma" and self._what["late_s"] > 0:
                            self._block(kernel, mode, count, most, self._what["late_s"], rested=True)
                    self._done += 1
                    if self._progress is not None:
                        self._progress(self._done, self._total)
        finally:
            if self._gloo is not None and sys.exc_info()[0] is None:
                self._gloo.close()
        self._group.Free()
        return {"library": library(), "blocks": self._found} if self._comm.rank == 0 else None

    def _copies(self) -> None:
        copies = Copies(self._comm)
        for way in Copies.WAYS:
            found = block(self._rounds, copies.make(way), COPY_ROUNDS, 0.0, kernel="copy", mode=way, bytes=copies.bytes)
            if found is not None:
                self._found.append(found)
        copies.close()

    def _block(self, kernel: str, mode: str, count: int, most: int, late_s: float, rested: bool = False) -> None:
        dtype, extra = self._what["dtype"], {}
        if kernel == "wagma":
            before = self._memory()
            wagma = Wagma(self._comm, count, dtype, mode, self._what["group_size"], self._what["options"], self._what["syncs"])
            call: Callable[[], object] = wagma
        elif kernel == "gloo":
            assert self._gloo is not None
            call = self._gloo.make(count, dtype)
        else:
            call = Allreduce(self._group, count, dtype, mode)
        found = block(self._rounds, call, most, late_s, rested=rested, kernel=kernel, mode=mode, count=count)
        if kernel == "wagma":
            bytes_ = (self._memory() - before) / self._comm.size
            size = count * np.dtype(STORED.get(dtype, dtype)).itemsize
            # One of them is the caller's own, wherever it lives.
            copies = bytes_ / size - 1 if size >= SHOWN_FROM else None
            fresh = self._comm.allreduce(sum(wagma.fresh)) / (self._comm.size * len(wagma.fresh))
            wagma.close()
            extra = {"memory_copies_per_rank": copies, "fresh_share": fresh, "transport": wagma.transport}
        if found is not None:
            self._found.append(found | extra)

    def _memory(self) -> int:
        total: int = self._comm.allreduce(held_bytes(self._comm.size))
        return total


def held_bytes(ranks: int) -> int:
    """This process's memory, and its part of what `ranks` ranks share, so that the sum over them counts shared pages once.

    What is shared is counted as the pages that the segments hold: reserved ones that nobody has touched yet are in no page table.
    """
    with suppress(OSError), open("/proc/self/smaps_rollup") as file:
        kib = {line.split()[0]: int(line.split()[1]) for line in file if line.startswith("Pss")}
        return 1024 * (kib["Pss:"] - kib.get("Pss_Shmem:", 0)) + _segments() // ranks  # every rank has them open
    return 0


def _segments() -> int:
    """Bytes of the memory that this process shares with other ranks of the collective."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("/memfd:wagma"):
                status = os.stat(f"/proc/self/fd/{number}")
                found[status.st_ino] = 512 * status.st_blocks
    return sum(found.values())


def measure(
    comm: Any, specification: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any] | None:
    """Everything that the specification asks for, on rank 0; None elsewhere."""
    return Measurement(comm, specification, progress).run()


if __name__ == "__main__":
    run_on_ranks(measure, sys.argv[1:])
