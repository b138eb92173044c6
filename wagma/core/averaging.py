"""Averaging rules: what a rank does with what others sent.

Groups (W algorithm 2, step 2): fresh, that is, the own model is in the sum: W = sum / |G|. Late: W = (sum + own) / (|G| + 1). Both are
one addition at most, one IEEE division and one rounding, never a multiplication by a reciprocal, so that every world and device
gets the same bits. Neighbours: a weighted sum in the order of the sources. Pairs: each moves by half of the difference.
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


def merge(total: Array | None, own: Array, own_weight: float, divisor: float) -> Array:
    """(total + own_weight * own) / divisor in the accumulation type, rounded once to own's dtype; `total` None is nothing."""
    dtype = accumulation_dtype(own.dtype)
    if total is None and own_weight == divisor:
        return own.copy()
    # own_weight 0 must not touch own: 0 * inf would poison a mean that own is not part of.
    numerator = total
    if own_weight:
        share = weighted(own.astype(dtype), own_weight)
        numerator = share if total is None else total + share
    if numerator is None:
        return np.zeros_like(own)
    return np.asarray(numerator / dtype.type(divisor)).astype(own.dtype)


def weighted(value: Array, weight: float) -> Array:
    """weight * value in value's dtype; by exactly 1 no bit changes (a signalling NaN's neither)."""
    return value if weight == 1 else np.asarray(value * value.dtype.type(weight))


def weighted_sum(values: Sequence[Array], weights: Sequence[float]) -> Array | None:
    """Sum of weight * value in the order given, in the accumulation type; None of nothing. The inputs stay as they are."""
    total: Array | None = None
    for value, weight in zip(values, weights, strict=True):
        term = weighted(value.astype(accumulation_dtype(value.dtype)), weight)
        total = term if total is None else total + term
    return total


def add(taken: Array, own: Array) -> Array:
    """taken + own, what a rank took back and what it has now, in the accumulation type, rounded once to own's dtype."""
    dtype = accumulation_dtype(own.dtype)
    return np.asarray(taken.astype(dtype) + own.astype(dtype)).astype(own.dtype)


def with_zeros(contributions: Sequence[Array | None]) -> list[Array]:
    """Contributions with zeros in place of each None. Raises ValueError if nobody contributes anything, so that no shape is known."""
    template = next((c for c in contributions if c is not None), None)
    if template is None:
        raise ValueError("a version to which nobody contributes: its activator must have")
    return [np.zeros_like(template) if c is None else c for c in contributions]


def shares(receivers: int) -> tuple[float, float]:
    """(what each of `receivers` gets, what the sender keeps) of a whole: receivers * given + kept == 1, exactly, also in float32.

    Nearly equal parts of 24 bits each. 1 / (receivers + 1), rounded to a model's float32, would add up to a little more or less than
    1, always the same, and models would grow or shrink from iteration to iteration.
    """
    given = float(np.float32(1 / (receivers + 1)))
    return given, 1 - receivers * given


def pair_average(own: Array, theirs: Array, sent: Array) -> Array:
    """own + (theirs - sent) / 2, rounded once: own is what has become of `sent` since. The other side's move is the exact negative."""
    dtype = accumulation_dtype(own.dtype)
    half = (theirs.astype(dtype) - sent.astype(dtype)) / dtype.type(2)
    return np.asarray(own.astype(dtype) + half).astype(own.dtype)


def mean(contributions: Sequence[Array]) -> Array:
    """What a sync gives: the sum along the association tree, divided once, rounded once to the contributions' dtype."""
    total = tree_sum(contributions)
    return np.asarray(total / total.dtype.type(len(contributions))).astype(contributions[0].dtype)
