"""Seconds where cores are free: for what is promised for that case, since other tests run beside the one that measures."""

from __future__ import annotations

import time
from pathlib import Path

#: Linux's pressure stall information: for how many microseconds, in all, some process of the machine has waited for a core.
PRESSURE = Path("/proc/pressure/cpu")


class Stopwatch:
    """Runs from its making on."""

    def __init__(self) -> None:
        self._began, self._stalled_s = time.monotonic(), _stalled_s()

    @property
    def seconds(self) -> float:
        """So far, without the time in which some process waited for a core; where the system does not tell that, all of it."""
        return time.monotonic() - self._began - (_stalled_s() - self._stalled_s)


def _stalled_s() -> float:
    try:
        some = PRESSURE.read_text().splitlines()[0]
    except (OSError, IndexError):
        return 0.0
    return int(some.rpartition("total=")[2]) * 1e-6
