"""Averaging rules: what a rank does with the sum of its group (W algorithm 2, step 2).

Fresh, that is, the own model is in the sum: W = sum / |G|. Late: W = (sum + own) / (|G| + 1). Both are one
addition at most, one IEEE division and one rounding, never a multiplication by a reciprocal, so that every world and device
gets the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from wagma.core.trees import accumulation_dtype, tree_sum

Ints = TypeVar("Ints", int, npt.NDArray[np.int64])
Array = npt.NDArray[Any]


def merge_rule(fresh: Ints, group_length: Ints) -> tuple[Ints, Ints]:
    """(own_weight, divisor) of W = (sum + own_weight * own) / divisor; own_weight is 0 or 1.

    Arithmetic, no branch: the arguments may be arrays over ranks. `group_length` 0 says that there is nothing to merge
    (the option merge_once): with fresh 0 the rule is then own / 1.
    """
    own_weight = 1 - fresh
    return own_weight, group_length + own_weight


def merge(total: Array | None, own: Array, own_weight: int, divisor: int) -> Array:
    """(total + own_weight * own) / divisor in the accumulation type, rounded once to own's dtype; `total` None is nothing."""
    dtype = accumulation_dtype(own.dtype)
    if total is None:
        return own.copy()
    # own_weight 0 must not touch own: 0 * inf would poison a mean that own is not part of.
    numerator = total + own.astype(dtype) if own_weight else total
    return np.asarray(numerator / dtype.type(divisor)).astype(own.dtype)


def mean(contributions: Sequence[Array]) -> Array:
    """What a sync gives: the sum along the association tree, divided once, rounded once to the contributions' dtype."""
    total = tree_sum(contributions)
    return np.asarray(total / total.dtype.type(len(contributions))).astype(contributions[0].dtype)
