"""The ranks of `wagma bench partial`: solo, majority and MPI_Allreduce where one rank comes after the other (E, figures 8 and 9).

`mpiexec -n N python -m mpi4py -m wagma.real.bench.partial SPECIFICATION`; one JSON line on rank 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wagma.real.bench.kernels import Wagma, run_on_ranks
from wagma.real.bench.rounds import WARM_UP, Allreduce, Rounds, library, staggered

#: The version of the first call that counts: the kernel is checked by one call, and warmed up.
FIRST_VERSION = 1 + WARM_UP


def measure(
    comm: Any, specification: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any] | None:
    """All sizes of all kernels in turns, on rank 0; None elsewhere. NAP: how many ranks were fresh, by iteration."""
    rounds = Rounds(comm)
    found = []
    parts, done = len(specification["sizes"]) * len(specification["kernels"]), 0
    for size in specification["sizes"]:
        for kernel, options in specification["kernels"].items():
            if kernel == "mpi":
                call, limit_s = Allreduce(comm, size // 4, "float32", "tensor"), specification["limit_s"]
                one = staggered(rounds, call, specification, limit_s, kernel=kernel, bytes=size)
                nap = np.full(0 if one is None else len(one["seconds"]), comm.size)
            else:
                wagma = Wagma(comm, size // 4, "float32", "tensor", comm.size, options)
                # All iterations, however long they take: each has the initiator that was drawn for it.
                one = staggered(rounds, wagma, specification, kernel=kernel, bytes=size)
                nap = comm.allreduce(np.array(wagma.fresh[FIRST_VERSION:], np.int64))
                wagma.close()
            if one is not None:
                found.append(one | {"nap": nap.tolist()})
            done += 1
            if progress is not None:
                progress(done, parts)
    return {"library": library(), "blocks": found} if comm.rank == 0 else None


if __name__ == "__main__":
    run_on_ranks(measure, sys.argv[1:])
