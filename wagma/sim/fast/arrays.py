"""What all parts of the fast engine share: times of all ranks as arrays, and moves of them between ranks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Nanoseconds, one for each rank (or for each place in a table of groups).
Times = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: Later than anything that happens, with room for the hops that are added to it.
NEVER_NS = 1 << 62
#: No time of a run may be later: beyond, sums would leave 63 bits.
LATEST_NS = 1 << 61
#: From so many elements on, index arrays cost more memory traffic than moving whole blocks.
SMALL = 1 << 14

_tables: dict[tuple[int, int], Ints] = {}


class Unfit(Exception):
    """The fast engine cannot reproduce this run; the text says why, and is the end of a sentence."""


def swapped(times: Times, bit: int) -> Times:
    """A copy in which element i along the last axis is the one at i XOR bit; that axis has a multiple of 2 bit elements."""
    size = times.shape[-1]
    if times.ndim == 1 and size <= SMALL:
        table = _tables.get((size, bit))
        if table is None:
            table = _tables[size, bit] = np.arange(size) ^ bit
        return times[table]
    pairs = times.reshape(*times.shape[:-1], size // (2 * bit), 2, bit)
    return pairs[..., ::-1, :].copy().reshape(times.shape)


def moved(times: Times, distance: int) -> Times:
    """A copy in which element r is the one at r - distance, modulo the length."""
    return np.concatenate((times[-distance:], times[:-distance])) if distance else times.copy()
