"""What an engine reads a rank's model or gradient from, and writes it into: the one thing that depends on where tensors are.

HostCarrier      an array in host memory, into which tensors are copied and out of which (here)
DeviceCarrier    the tensors themselves, on their device (wagma.real.devices.carrier)
ResidentModel    the engine's own buffers, in which the parameters live (wagma.real.wrapper.resident)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from wagma.core.effects import Value
from wagma.real.devices.place import HOST, Place
from wagma.real.gossip.shared import Flat

if TYPE_CHECKING:
    from wagma.real.kernel import Engine, Own

Array = npt.NDArray[Any]


class Carrier(Protocol):
    """Between one rank's tensors and its engine; of the thread that trains, and after its end of the one that serves the others."""

    def take(self, value: Value) -> Own:
        """The tensors as they are now, for the engine to read."""

    def place(self, value: Value, read: bool) -> Own:
        """For the engine to write into; `read`: it reads there, too, and finds what the tensors hold."""

    def put(self, value: Value) -> None:
        """The engine has written where `place` said: now the tensors hold it."""

    def joined(self) -> None:
        """The engine has taken the model, and has nothing for this rank."""

    def updated(self) -> None:
        """The tensors have changed: what was taken is out of date."""

    def result(self, engine: Engine) -> Array:
        """The engine's result as an array, for arithmetic that the kernel does not know."""

    def begin(self, initial: Array) -> None:
        """Of a run that is resumed: what a rank that is late contributes first."""

    def published(self) -> Array | None:
        """After a sync: the model that this rank contributes while it is late, if the parameters have fewer bits of it (mixed dtypes)."""

    def settle(self, rank: int, limit_s: float) -> None:
        """Until the tensors hold what the program has done with them, on whichever stream: it has ended, and another thread goes on.

        Raises CollectiveTimeout if they do not after `limit_s` seconds.
        """

    def last(self) -> Own:
        """The model when the program has ended and `settle` has returned, for syncs of those that go on."""

    def release(self) -> None:
        """All ranks have closed: the tensors are the program's alone."""


class HostCarrier:
    """Copies tensors, which are at `where`, into one array and out of it. steady: nobody else changes the model in an iteration."""

    def __init__(self, flats: Mapping[Value, Flat], steady: bool, where: Place = HOST) -> None:
        self._flats = flats
        self._steady = steady
        self._where = where
        self._buffer = np.empty(flats[Value.MODEL].size, flats[Value.MODEL].dtype)
        self._taken: Value | None = None  # what the buffer still holds

    def take(self, value: Value) -> Array:
        """A copy."""
        self._flats[value].read(self._buffer)
        self._taken = value
        return self._buffer

    def place(self, value: Value, read: bool) -> Array:
        """The same array; no copy, if it still has what was taken."""
        if read and (self._taken is not value or not self._steady):
            self.take(value)
        return self._buffer

    def put(self, value: Value) -> None:
        """A copy."""
        self._flats[value].write(self._buffer)

    def joined(self) -> None:
        """Nothing to do."""

    def updated(self) -> None:
        """Take it anew next time."""
        self._taken = None

    def result(self, engine: Engine) -> Array:
        """An array of its own."""
        total = np.empty_like(self._buffer)
        engine.copy_result(total)
        return total

    def begin(self, initial: Array) -> None:
        """As if it had been the result of a sync."""
        self._buffer[...] = initial
        self._taken = Value.MODEL

    def published(self) -> Array | None:
        """The array has all bits."""
        return None if self._taken is not Value.MODEL or self._flats[Value.MODEL].exact else self._buffer.copy()

    def last(self) -> Array:
        """An array of its own."""
        return self._flats[Value.MODEL].read()

    def settle(self, rank: int, limit_s: float) -> None:
        """Until reading a tensor on another thread, with another stream, finds what this one has written."""
        self._where.settle(rank, limit_s)

    def release(self) -> None:
        """Nothing to do."""
