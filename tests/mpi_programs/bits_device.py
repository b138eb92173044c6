"""Every bit of group averages of models on a device: arguments are the device, and transports, with ",resident" behind those so used."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from ranks import COMM, RANK, say

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what tests on threads use, too

from device_arrays import OnDevice
from published import DTYPES, MANY, Case, evolve, run

from wagma.core.digest import digest


def main() -> None:
    """All ranks, in groups of two and of all, with many chunks and with one."""
    kind, late = sys.argv[1], 0
    for argument in sys.argv[2:]:
        transport, _, resident = argument.partition(",")
        collective_of = partial(OnDevice, kind=kind, transport=transport)
        for number, dtype in enumerate(DTYPES):
            shape = (2, COMM.size)[number % 2], (0, 5)[number // 2], dtype, (MANY, 3)[number % 2]
            late += run(COMM, Case(*shape, resident=bool(resident)), collective_of)[1]
            final = evolve(COMM, Case(COMM.size, 1, dtype, 1001, 4, resident=bool(resident)), collective_of)
            if RANK == 0:
                say(f"{dtype} {digest(final)}")
    say(f"ok, {late} late")


main()
