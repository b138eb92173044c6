"""Parameters and gradients on a device as the engine takes them: by their addresses, so that its kernels read and write them there.

What kernels cannot work on goes through a copy, in the order of the program's stream: a tensor that is not contiguous (its elements travel
in the order of its indices, on all ranks alike, whatever its strides), a gradient that is not there but may get a mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from wagma.core.effects import Value
from wagma.errors import OutOfDeviceMemory
from wagma.real.devices.place import Place
from wagma.workloads.flat import FlatView

if TYPE_CHECKING:
    from wagma import _native
    from wagma.real.kernel import Engine

Array = npt.NDArray[Any]


class DeviceTensors:
    """The tensors of a flat view, as one wagma._native.DeviceParts."""

    def __init__(self, flat: FlatView, place: Place) -> None:
        assert place.device is not None
        self._flat = flat
        self._where = place
        self._addresses = [0] * len(flat.parameters)
        self._dtypes = [parameter.dtype for parameter in flat.parameters]
        self._copies: dict[int, torch.Tensor] = {}  # in place of tensors that are not contiguous, or not there
        self._held: list[torch.Tensor | None] = []  # whose addresses the kernels have: they must not go before those are done
        self._parts: _native.DeviceParts = place.device.parts(
            flat.kernel_dtype, [(0, parameter.numel(), _name(parameter.dtype)) for parameter in flat.parameters]
        )

    def lay(self, read: bool, write: bool, keep: bool = False) -> _native.DeviceParts:
        """Where the tensors are now. read, write: what is done there; keep: nothing has changed since the last time, which was to read.

        Raises ModelChanged if a parameter is not what it was; OutOfDeviceMemory, naming it, if there is no room for a copy.
        """
        if keep and None not in self._held:
            return self._parts
        if not keep:
            self._copies.clear()
        parameters = list(self._flat.unchanged())
        self._held = [self._flat.own(parameter) for parameter in parameters]
        for i, (parameter, own) in enumerate(zip(parameters, self._held, strict=True)):
            if own is None:
                if write and i not in self._copies:
                    self._copies[i] = self._copy(i, parameter, None, zeros=True)
            elif i not in self._copies and not (own.is_contiguous() and own.dtype == self._dtypes[i]):
                self._copies[i] = self._copy(i, parameter, own if read else None)
        addresses = [
            0 if found is None else found.data_ptr() for found in (self._copies.get(i, own) for i, own in enumerate(self._held))
        ]
        if addresses != self._addresses:
            self._parts.place(addresses)
            self._addresses = addresses
        self._parts.stream = self._where.stream()
        return self._parts

    def put(self) -> None:
        """Kernels have written there: copies go where they belong."""
        parameters = self._flat.parameters
        missing = [i for i in self._copies if self._flat.own(parameters[i]) is None]
        # One question to the device for all, and only where a gradient is missing.
        found = torch.stack([self._copies[i].any() for i in missing]).tolist() if missing else []
        with torch.no_grad():
            for i, there in zip(missing, found, strict=True):
                if there:  # left alone, this rank's model would drift away from the others'
                    parameters[i].grad = self._copies[i]
            for i in self._copies.keys() - set(missing):
                target = self._flat.own(parameters[i])
                assert target is not None
                target.copy_(self._copies[i])
        self.forget()
        # What kernels write torch does not see: a graph that still needs what was there has to notice.
        torch.autograd.graph.increment_version([own for own in map(self._flat.own, parameters) if own is not None])

    def forget(self) -> None:
        """The copies may go."""
        self._copies.clear()

    def _copy(self, i: int, parameter: torch.Tensor, own: torch.Tensor | None, zeros: bool = False) -> torch.Tensor:
        name, shape = self._flat.named[i][0], self._flat.shapes[i]
        with (
            room(f"{self._flat.who}parameter {name!r}", parameter.numel() * parameter.element_size(), self._where),
            torch.no_grad(),
        ):
            made = empty(shape, parameter.dtype, parameter.device)
            if zeros:
                made.zero_()
            elif own is not None:
                made.copy_(own)
        return made


class DeviceCarrier:
    """A `wagma.real.carriers.Carrier`: nothing is copied but what `DeviceTensors` says."""

    def __init__(self, model: FlatView, gradient: FlatView, place: Place) -> None:
        self._model = model
        self._where = place
        self._tensors = {Value.MODEL: DeviceTensors(model, place), Value.GRADIENT: DeviceTensors(gradient, place)}
        self._fresh: Value | None = None  # of which copies hold what the tensors do
        # Where parameters have fewer bits than what travels: what came out of the last sync, and whether it still counts.
        self._whole: torch.Tensor | None = None
        self._whole_parts: _native.DeviceParts | None = None
        self._synced = self._into_whole = False

    def take(self, value: Value) -> _native.DeviceParts:
        """Where they are; copies of those that are not contiguous."""
        parts = self._tensors[value].lay(read=True, write=False)
        self._fresh = value
        return parts

    def place(self, value: Value, read: bool) -> _native.DeviceParts:
        """Where they are, with places for gradients that are missing."""
        self._into_whole = value is Value.MODEL and not read and not self._model.exact
        if self._into_whole:
            return self._all()
        return self._tensors[value].lay(read, write=True, keep=self._fresh is value)

    def put(self, value: Value) -> None:
        """Copies go where they belong."""
        self._fresh = None
        if not self._into_whole:
            self._tensors[value].put()
            return
        assert self._whole is not None
        self._into_whole, self._synced = False, True
        with torch.no_grad():
            for source, parameter in zip(self._model.parts(self._whole), self._model.unchanged(), strict=True):
                parameter.copy_(source)

    def joined(self) -> None:
        """Copies may go."""
        self._fresh = None
        for tensors in self._tensors.values():
            tensors.forget()

    def updated(self) -> None:
        """Copies, and the result of the last sync, are out of date."""
        self._synced = False
        self.joined()

    def result(self, engine: Engine) -> Array:
        """By way of the device."""
        engine.copy_result(self._all())
        return self._to_host()

    def begin(self, initial: Array) -> None:
        """As if it had been the result of a sync."""
        if not self._model.exact:
            self._all()
            assert self._whole is not None
            self._whole.copy_(self._model.tensor(initial))
            self._synced = True

    def published(self) -> Array | None:
        """What came out of the sync, before it was rounded."""
        return self._to_host() if self._synced else None

    def last(self) -> _native.DeviceParts:
        """The tensors themselves."""
        return self.take(Value.MODEL)

    def settle(self, rank: int, limit_s: float) -> None:
        """All of the device's streams: which of them the program has used last, the thread that goes on cannot know."""
        self._where.settle(rank, limit_s)

    def release(self) -> None:
        """The copies go."""
        self.updated()
        self._whole = self._whole_parts = None

    def _all(self) -> _native.DeviceParts:
        """One tensor for the whole model, as it travels."""
        if self._whole is None or self._whole_parts is None:
            model, device = self._model, self._where.device
            assert device is not None
            size = model.size * model.torch_dtype.itemsize
            with room(f"{model.who}the model in {model.kernel_dtype}", size, self._where):
                self._whole = empty((model.size,), model.torch_dtype, model.parameters[0].device)
            self._whole_parts = device.parts(model.kernel_dtype, [(self._whole.data_ptr(), model.size, model.kernel_dtype)])
        self._whole_parts.stream = self._where.stream()
        return self._whole_parts

    def _to_host(self) -> Array:
        assert self._whole is not None
        values = np.empty(self._model.size, self._model.dtype)
        self._model.tensor(values).copy_(self._whole)
        return values


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A contiguous tensor; raises what torch does where there is no memory for it."""
    return torch.empty(shape, dtype=dtype, device=device)


@contextmanager
def room(what: str, size: int, place: Place) -> Iterator[None]:
    """torch's complaint of too little memory inside becomes OutOfDeviceMemory, one line that names what it was for, and how much."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0] if str(error) else "no reason given"
        raise OutOfDeviceMemory(f"{what}: no memory on {place} for a copy of {size:,} bytes: {first}") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
