"""A model that others average with while this rank computes: its gradient is that of a snapshot, and averages change the original."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wagma.core.averaging import pair_average

Array = npt.NDArray[Any]


class Flat(Protocol):
    """Tensors as one array (wagma.workloads.flat.FlatView)."""

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""

    @property
    def exact(self) -> bool:
        """Whether the tensors hold every bit of the array."""

    def read(self, out: Array | None = None) -> Array:
        """All values."""

    def write(self, values: Array) -> None:
        """Put values back."""


class StandIn:
    """One number in place of a model or gradient whose values nobody asks for."""

    size = 1
    exact = True

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def read(self, out: Array | None = None) -> Array:
        """Zero, always."""
        if out is None:
            return np.zeros(1, self.dtype)
        out.fill(0)
        return out

    def write(self, values: Array) -> None:
        """Of no consequence."""


class SharedModel:
    """The original is `values`, an array of its own; the snapshot is what the parameters hold (`parameters`).

    `lock` protects the original, and whatever the caller has to see change together with it. Without it an average could come between the
    update's reading of the model and its writing it back, and would be lost: the mean of all models would move.
    """

    def __init__(self, parameters: Flat, lock: AbstractContextManager[Any]) -> None:
        self._parameters = parameters
        self._lock = lock
        self._values = parameters.read()

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._parameters.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self._parameters.dtype

    @property
    def exact(self) -> bool:
        """As of the parameters."""
        return self._parameters.exact

    def read(self, out: Array | None = None) -> Array:
        """The original: a copy."""
        with self._lock:
            if out is None:
                return self._values.copy()
            out[...] = self._values
            return out

    def write(self, values: Array) -> None:
        """The original becomes `values`."""
        with self._lock:
            self._values[...] = values

    def update(self, apply: Callable[[], Any]) -> None:
        """W = W + U(gradient), in the parameters, with the original in them."""
        with self._lock:
            self._parameters.write(self._values)
            apply()
            self._parameters.read(self._values)

    def average_pair(self, theirs: Array, sent: Array) -> None:
        """The original moves by half of (theirs - sent)."""
        with self._lock:
            self._values[...] = pair_average(self._values, theirs, sent)

    def settle(self) -> None:
        """Take a snapshot: what the parameters hold until the next update."""
        with self._lock:
            self._parameters.write(self._values)
