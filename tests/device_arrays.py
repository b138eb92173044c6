"""Arrays and streams of a device, emulated or a GPU, for tests that were written for numpy arrays in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wagma import GroupAllreduce
from wagma.core.digest import digest
from wagma.real.bench.device import Tensor, place_for, read, write
from wagma.real.collective import AverageOutcome
from wagma.real.devices.place import Place
from wagma.real.modules import native

Array = npt.NDArray[Any]

#: Of a GPU's clock: at least as many as any has, so that it sleeps for as long as it is told to.
CYCLES_PER_S = 2.5e9


def where(kind: str) -> str:
    """Of GroupAllreduce: ranks are threads of one process here, and share the first GPU."""
    return "cuda:0" if kind == "cuda" else kind


class OnDevice(GroupAllreduce):
    """The collective of a host array's twin in a device's memory: written before each average, read after it.

    So a test that averages a numpy array holds for a device as it stands. `kind` is "cuda" or "emulated".
    """

    def __init__(self, comm: Any, buffer: Array, *arguments: Any, kind: str, **options: Any) -> None:
        self._host = buffer
        place = place_for(where(kind), comm.rank)
        assert place.device is not None
        self._device = place.device
        super().__init__(comm, Tensor(place, buffer), *arguments, device=where(kind), **options)

    @property
    def model(self) -> Array:
        """The host's."""
        return self._host

    def average(self, iteration: int | None = None, stream: Any = None) -> AverageOutcome:
        """Of what is in the host's array."""
        write(self._device, super().model, self._host)
        outcome = super().average(iteration, stream)
        self._host[:] = read(self._device, super().model)
        return outcome


class Work:
    """A stream of the application's on which tests put work, and what they need to see of it."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        if kind == "emulated":
            self.stream = native().EmulatedStream()
        else:
            import torch

            self._torch = torch
            self.stream = torch.cuda.Stream(0)

    def sleep(self, seconds: float) -> None:
        """Be busy for so long."""
        if self._kind == "emulated":
            self.stream.sleep(seconds)
        else:
            with self._torch.cuda.stream(self.stream):
                self._torch.cuda._sleep(int(seconds * CYCLES_PER_S))

    def fill(self, tensor: Any, value: float) -> None:
        """Write `value` into each element of float32."""
        if self._kind == "emulated":
            self.stream.fill(tensor.address, tensor.count, "float32", value)
        else:
            with self._torch.cuda.stream(self.stream):
                self._torch.as_tensor(tensor, device="cuda:0").fill_(value)

    def synchronize(self) -> None:
        """Until all of it is done."""
        self.stream.synchronize()


def seen(tensor: Any, place: Place) -> float:
    """The one value that is in all elements now. Does not wait for other streams."""
    assert place.device is not None
    values = read(place.device, tensor)
    assert (values == values[0]).all(), f"torn: {digest(values)}"
    return float(values[0])


def zeros(count: int) -> Array:
    """Of float32."""
    return np.zeros(count, np.float32)
