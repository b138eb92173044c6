"""Many group averages with random lateness, two collectives at once and ends that differ; sums are checked where they are known."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from ranks import COMM, RANK, say

from wagma import GroupAllreduce
from wagma.core.mixing import bits

PAGE = 4096
GROWTH = 8 << 20  # bytes; Python's own allocator moves by less


def resident_bytes() -> int:
    """What this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def main() -> None:
    """Arguments: collectives (of a rank), transport."""
    most, transport = int(sys.argv[1]) // 2, sys.argv[2]
    synced, free = np.zeros(1000), np.zeros(257, np.float32)
    size = COMM.size
    ends = [most - bits(3, "soak", rank, 0) % (most // 4) if rank else most for rank in range(size)]
    warm = 0
    with (
        GroupAllreduce(COMM, synced, min(2, size), 10, transport=transport, timeout_s=60.0) as first,
        GroupAllreduce(COMM, free, size, "never", transport=transport, timeout_s=60.0) as second,
    ):
        for t in range(most):
            if t == most // 4:
                warm = resident_bytes()
            drawn = bits(4, "soak", RANK, t)
            if drawn % 64 == 0:
                time.sleep(drawn // 64 % 800 / 1e6)
            synced[:] = t * 1000 + RANK
            if first.average().synced:
                assert (synced == t * 1000 + (size - 1) / 2).all(), (t, synced[0])
            assert (synced == synced[0]).all(), "torn"
            if t < ends[RANK]:
                free[:] = t % 1000 + RANK
                second.average()
                assert (free == free[0]).all(), "torn"
                assert 0 <= free[0] < 1000 + size, free[0]  # an average of what was ever published
        growth = resident_bytes() - warm
    assert growth < GROWTH, f"memory has grown by {growth} bytes"
    say(f"ok {most + ends[RANK]}")


main()
