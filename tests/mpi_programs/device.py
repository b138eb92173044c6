"""Buffers on the emulated device, carried by MPI: every bit of single exchanges, and of whole runs.

Each operation of the device begins up to 300 us later than it could, drawn anew at each rank: so whatever does not wait for it finds
something else than the sum.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
from ranks import COMM, RANK, say

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what tests on threads use, too
os.environ["WAGMA_EMULATED_DELAY_US"] = "300"
os.environ["WAGMA_EMULATED_SEED"] = str(RANK)
os.environ["WAGMA_EMULATED_MEMORY"] = str(256 << 20)

from device_arrays import OnDevice
from exchange import COUNTS, SCRATCH_LIMIT, STRIDE, TARGET, check, fresh, group
from published import DTYPES, Case, evolve, run

from wagma.core.digest import digest
from wagma.errors import OutOfDeviceMemory
from wagma.real.modules import mpi_native, native

LIMIT_S = 20.0


def exchanges() -> None:
    """In all dtypes, by groups of every length: the same as in host memory, and the stamp; members that are spared add up nothing."""
    size = max(COUNTS) * 8
    own = native().DeviceBuffers(native().emulated_device(), 2, size)
    transport = mpi_native().connect(COMM.py2f(), 2, size, LIMIT_S, device_buffers=own)
    assert transport.name == "MPI on emulated", transport.name
    stamp = ctypes.c_int64.from_address(transport.buffer(TARGET).ctypes.data + own.stamp_offset)
    scratch, version = transport.scratch_bytes, 0
    for dtype in sys.argv[2].split(","):
        for count in COUNTS:
            for length in range(1, COMM.size + 1):
                members, before = group(version, length), transport.additions
                check(transport, version, members, count, dtype)
                assert stamp.value == version, (stamp.value, version)
                spared = not fresh(RANK, version) and any(fresh(member, version) for member in members)
                if spared or count >= 16 * length:  # of fewer elements not everybody has a part
                    assert (transport.additions == before) == spared, (version, members, count)
                version += STRIDE
    assert transport.scratch_bytes == scratch <= SCRATCH_LIMIT, (scratch, transport.scratch_bytes)
    transport.leave(LIMIT_S)


def runs() -> int:
    """Averages of late and fresh models; ranks that close at different times; and one that syncs. How many calls came late."""
    on_device = partial(OnDevice, kind="emulated", transport="cuda-mpi")
    late = 0
    for number, dtype in enumerate(DTYPES):
        case = Case((2, COMM.size)[number % 2], 0, dtype, (70_001, 3)[number // 2], iterations=8 + 3 * RANK)
        late += run(COMM, case, on_device)[1]
        final = evolve(COMM, Case(COMM.size, 1, dtype, 1001, 4), on_device)
        if RANK == 0:
            say(f"{dtype} {digest(final)}")
    return late


def refusals() -> None:
    """Buffers that are not those of the transport; and rank 1's device has no room for what comes in, which all hear of."""
    device = native().emulated_device()
    own = native().DeviceBuffers(device, 2, 1000)
    try:
        mpi_native().connect(COMM.py2f(), 3, 1000, LIMIT_S, device_buffers=own)
    except ValueError as error:
        say(str(error))
    mib = 1 << 20
    model = np.zeros(6 * mib // 4, np.float32)
    taken = device.allocate(device.memory()[0] - 28 * mib) if RANK == 1 else 0  # 6 for the model, 20 for buffers
    try:
        OnDevice(COMM, model, 2, "never", kind="emulated", transport="cuda-mpi")
    except OutOfDeviceMemory as error:
        say(str(error))
    if taken:
        device.release(taken)


def main() -> None:
    """Arguments: counts and dtypes, as of exchange.py."""
    exchanges()
    COMM.Barrier()
    late = runs()
    refusals()
    say(f"ok, {late} late")


main()
