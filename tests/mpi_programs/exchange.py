"""Executions over MPI without an engine: every bit of the sums and means, for all that the members of one version may differ in."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
from ranks import COMM, RANK, say

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what tests on threads use, too

from published import rounded, widened

from wagma.core.averaging import merge
from wagma.core.trees import tree_sum
from wagma.errors import CollectiveTimeout
from wagma.real.modules import mpi_native

CONTRIBUTION, TARGET = 0, 1
SCRATCH_LIMIT = 4 << 20  # bytes, however long the model
COUNTS = [int(text) for text in sys.argv[1].split(",") if text != "absent"]
STRIDE, STARTS = 1000, 100  # versions are this far apart, since tags repeat after about two thousand


@cache
def numbers(rank: int, length: int) -> np.ndarray:
    """Numbers that cancel: of magnitudes far apart and both signs, so that nearly every other order of additions rounds differently."""
    draws = np.random.default_rng(rank)
    values = draws.uniform(-1, 1, length) * 2.0 ** draws.integers(-8, 8, length)
    values[draws.random(length) < 0.05] = -0.0
    return values


def contribution(rank: int, version: int, count: int, dtype: str) -> np.ndarray:
    """Of a rank's numbers, those from where the version says: no two versions have the same."""
    begin = version // STRIDE % STARTS
    return rounded(numbers(rank, max(COUNTS) + STARTS)[begin : begin + count], dtype)


def contributes(rank: int, version: int) -> bool:
    """Some members have nothing to give; somebody always has."""
    return (rank + version) % 3 != 1 or rank == version % COMM.size


def fresh(rank: int, version: int) -> bool:
    """Some members' applications have not arrived; in some versions none of a group, in some all."""
    return contributes(rank, version) and np.random.default_rng((rank, version)).random() < 0.6


def expected(members: list[int], version: int, count: int, dtype: str) -> np.ndarray:
    """The sum along the association tree; a null contribution counts as zeros."""
    parts = [widened(contribution(member, version, count, dtype), dtype) for member in members]
    return tree_sum([part if contributes(m, version) else np.zeros_like(part) for m, part in zip(members, parts, strict=True)])


def check(transport, version: int, members: list[int], count: int, dtype: str) -> None:
    """One version; every other member wants the mean, the others the sum, as the late ones of a group do."""
    own = contribution(RANK, version, count, dtype)
    own_bytes = transport.buffer(CONTRIBUTION)[: own.nbytes]
    own_bytes[:] = own.view(np.uint8)
    transport.buffer(TARGET)[:] = 0xFF
    divisor = len(members) if (members.index(RANK) + version) % 2 else 1
    given = CONTRIBUTION if contributes(RANK, version) else -1
    stamp = version if fresh(RANK, version) else -1
    transport.exchange(version, members, given, TARGET, count, dtype, divisor, 20.0, stamp)
    total = expected(members, version, count, dtype)
    result = total if divisor == 1 else rounded(merge(total, widened(own, dtype), 0, divisor), dtype)
    found = transport.buffer(TARGET)[: result.nbytes].view(result.dtype)
    wrong = np.flatnonzero(found.view(f"u{result.itemsize}") != result.view(f"u{result.itemsize}"))
    assert not len(wrong), (version, members, count, dtype, divisor, wrong[:5], found[wrong[:5]], result[wrong[:5]])
    assert (transport.buffer(TARGET)[total.nbytes :] == 0xFF).all(), "written beyond the target"
    assert (own_bytes == own.view(np.uint8)).all(), "the contribution has changed"


def group(version: int, length: int) -> list[int]:
    """Mine, of groups of that length and one of what is left, in an order of their own."""
    members = [(member + version) % COMM.size for member in range(COMM.size)]
    place = members.index(RANK) // length * length
    return members[place : place + length]


def absent() -> None:
    """Rank 1 does not come: the others, stuck in different steps, all know that it is the one."""
    transport = mpi_native().connect(COMM.py2f(), 2, 4000, 20.0)
    if RANK != 1:
        try:
            transport.exchange(0, [0, 1, 2, 3], CONTRIBUTION, TARGET, 1000, "float32", 1, 1.0)
        except CollectiveTimeout as error:
            say(str(error))
    COMM.Barrier()


def main() -> None:
    """Arguments: counts (with commas) dtypes, or "absent". Groups of every length that the ranks allow, several at a time."""
    if not COUNTS:
        absent()
        return
    dtypes = sys.argv[2].split(",")
    transport = mpi_native().connect(COMM.py2f(), 2, max(COUNTS) * 8, 20.0)
    version = 0
    for dtype in dtypes:
        for count in COUNTS:
            for length in range(1, COMM.size + 1):
                check(transport, version, group(version, length), count, dtype)
                version += STRIDE
    assert transport.scratch_bytes <= SCRATCH_LIMIT, transport.scratch_bytes
    transport.leave(20.0)
    say(f"ok, {transport.scratch_bytes} bytes of scratch")


if __name__ == "__main__":
    main()
