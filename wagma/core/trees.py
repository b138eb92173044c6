"""The association tree: in which order a group's contributions are added, fixed so that equal contributions give equal bits.

Floating-point addition is commutative but not associative, so the tree, not the arrival order, decides the bits. For n
leaves the tree is the binomial one: neighbours first, then pairs, then fours. A power of two gives exactly what recursive
doubling computes. Transports may slice the data, pipeline it or read it out of shared memory, as long as every element is
added up along this tree, in the accumulation type, partials on the wire included.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@lru_cache(maxsize=256)
def association(leaves: int) -> tuple[tuple[int, int], ...]:
    """The additions for n leaves, in order: (into, from) means partial[into] += partial[from]; the sum ends in partial[0].

    association(5) == ((0, 1), (2, 3), (0, 2), (0, 4)).
    """
    steps = []
    stride = 1
    while stride < leaves:
        steps += [(i, i + stride) for i in range(0, leaves - stride, 2 * stride)]
        stride *= 2
    return tuple(steps)


def accumulation_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """float32 for types of 32 bits and less, float64 for float64."""
    return np.dtype(np.float64) if np.dtype(dtype) == np.float64 else np.dtype(np.float32)


def tree_sum(contributions: Sequence[Array]) -> Array:
    """Sum of equally shaped arrays along the association tree, in the accumulation type; the inputs stay as they are."""
    dtype = accumulation_dtype(contributions[0].dtype)
    partial: list[Array] = [np.asarray(c, dtype) for c in contributions]
    if len(partial) == 1:
        return partial[0].copy()
    for into, source in association(len(partial)):
        partial[into] = partial[into] + partial[source]
    return partial[0]
