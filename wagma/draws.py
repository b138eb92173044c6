"""Counter-based random draws: a pure function of (seed, purpose, rank, iteration), the same in every world, engine and scale.

There is no generator whose state could drift apart between ranks: rank 3's delay in iteration 17 is one number, whoever asks for it,
in whatever order, with whatever world size. Distributions go through the inverse of their CDF, one uniform each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.core.mixing import Iterations, bits

__all__ = ["Iterations", "bits", "open_interval", "uniform"]

_U64 = np.uint64


def uniform(seed: int, purpose: str, ranks: npt.ArrayLike, iteration: Iterations) -> npt.NDArray[Any]:
    """Uniform draws in the open interval (0, 1), so that every inverse CDF is finite; float64, shape of `ranks` (see `bits`)."""
    return open_interval(bits(seed, purpose, ranks, iteration))


def open_interval(words: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """Words mapped to (0, 1) by their upper 53 bits; the largest ones would round up to 1."""
    return np.minimum(((words >> _U64(11)).astype(np.float64) + 0.5) * 2.0**-53, 1 - 2.0**-53)
