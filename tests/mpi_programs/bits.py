"""Every bit of group averages, on communicators of several sizes at a time: the arguments are transports."""

from __future__ import annotations

import sys
from pathlib import Path

from ranks import COMM, RANK, say

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what tests on threads use, too

from published import DTYPES, MANY, Case, evolve, run

from wagma.core.digest import digest


def cases(dtype: str, ranks: int) -> list[Case]:
    """Group sizes up to `ranks`, models with one and with many chunks, in the caller's memory and in the library's."""
    few = {2: [2, 1], 3: [2, 3], 4: [4, 3]}[ranks]
    every = DTYPES.index(dtype)
    return [
        Case(size, (0, 5)[i % 2], dtype, (MANY, 3)[(i + every) % 2], resident=(i + every // 2 + ranks) % 2 == 1)
        for i, size in enumerate(few)
    ]


def main() -> None:
    """Ranks 0 to 3 as one communicator, as two of two, and as one of three."""
    late = 0
    for transport in sys.argv[1:]:
        pairs, threes = COMM.Split(RANK // 2, RANK), COMM.Split(RANK // 3, -RANK)
        for comm in (COMM, pairs, threes):
            if comm.size == 1:
                continue
            for dtype in DTYPES:
                for case in cases(dtype, comm.size):
                    late += run(comm, case, transport=transport)[1]
                final = evolve(comm, Case(comm.size, 1, dtype, 1001, 4, resident=comm is pairs), transport=transport)
                if comm is COMM and RANK == 0:
                    say(f"{dtype} {digest(final)}")
        COMM.Barrier()
    say(f"ok, {late} late")


main()
