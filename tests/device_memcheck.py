"""Averages in all dtypes, of odd counts, on ranks that are threads; a program of its own, for compute-sanitizer. Argument: the device."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from device_arrays import OnDevice
from published import DTYPES, Case, run

from wagma.real.local import run_local


def main(kind: str) -> None:
    """Sums of two and three, syncs among them, through the device's memory and staged."""
    for dtype in DTYPES:
        for transport, case in (
            ("ipc", Case(2, 4, dtype, 1003, 6)),
            ("ipc", Case(3, 0, dtype, 5, 6)),
            ("shm", Case(2, 4, dtype, 17, 6)),
        ):
            run_local(3, partial(run, case=case, collective_of=partial(OnDevice, kind=kind, transport=transport)))
        print(f"{dtype} ok")


if __name__ == "__main__":
    if sys.argv[1:] not in (["emulated"], ["cuda"]):
        sys.exit(f"usage: python {sys.argv[0]} emulated|cuda")
    main(sys.argv[1])
