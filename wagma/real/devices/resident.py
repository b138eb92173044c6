"""Models that live in an engine's buffers on a device: those as arrays, and whose order the engine follows.

A buffer's memory stays for as long as an array over it does, also after `close`. Nobody waits then for what the program's own kernels do
there: who drops the last array lets them end first, as with any memory that a library has not allocated itself.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from wagma.errors import WagmaError
from wagma.real.devices.arrays import handle_of, is_tensor, typestr_of
from wagma.real.devices.place import Place

if TYPE_CHECKING:
    from wagma import _native
    from wagma.real.devices.callers import CallersArray
    from wagma.real.kernel import Engine


class DeviceBuffer:
    """One of an engine's buffers, for whoever knows `__cuda_array_interface__` (`cupy.asarray`, `torch.as_tensor`, numba).

    keeper: what frees the memory when nobody has it any more. typestr: of its items, of which there are `count`.
    """

    def __init__(self, keeper: object, address: int, count: int, typestr: str) -> None:
        self._keeper = keeper
        self.address, self.count = address, count
        self._typestr = typestr

    def _interface(self) -> dict[str, Any]:
        return {"shape": (self.count,), "typestr": self._typestr, "data": (self.address, False), "version": 3}

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. No stream: whoever has the model finds it whole, and says by `average(stream=...)` in whose order it was written."""
        return {**self._interface(), "stream": None}

    def host_array(self) -> Any:
        """Of an emulated device, whose memory is the host's: a numpy array, which keeps this object."""
        return np.asarray(_HostMemory(self, self._interface()))


class _HostMemory:
    """What numpy makes an array of."""

    def __init__(self, buffer: DeviceBuffer, interface: dict[str, Any]) -> None:
        self._buffer = buffer
        self.__array_interface__ = interface


def tensor_of(buffer: DeviceBuffer, dtype: Any, place: Place) -> Any:
    """A torch tensor over a buffer of items of `dtype`'s size. Raises WagmaError if torch makes a copy instead."""
    torch = sys.modules["torch"]
    if place.kind == "cuda":
        whole = torch.as_tensor(buffer, device=torch.device("cuda", place.index)).view(dtype)
    else:
        whole = torch.from_numpy(buffer.host_array()).view(dtype)
    if whole.data_ptr() != buffer.address:
        raise WagmaError(f"torch {torch.__version__} copies a buffer on {place} instead of using it: resident must be False")
    return whole


class ResidentArrays:
    """In `GroupAllreduce`: the buffers in the library of the array that held the first value, of which nothing else is kept.

    A torch tensor becomes torch tensors, a numpy array (on an emulated device) numpy arrays; any other array DeviceBuffers.
    """

    def __init__(self, first: CallersArray, engine: Engine) -> None:
        assert first.place.device is not None
        self._place = first.place
        self._torch = is_tensor(first.array)
        self._engine = engine
        self.models = [self._array(index, first.array, first.dtype) for index in range(engine.buffers)]
        self._order: _native.DeviceParts = first.place.device.parts(first.dtype, [])  # no tensors: it has a stream

    def _array(self, index: int, first: Any, dtype: str) -> Any:
        buffer = self._engine.device_buffer(index, typestr_of(dtype, None if self._torch else first))
        if self._torch:
            return tensor_of(buffer, first.dtype, self._place)
        return buffer.host_array() if isinstance(first, np.ndarray) else buffer

    def own(self, stream: Any = None) -> _native.DeviceParts:
        """For the engine's next call: the stream that the caller works in; None: torch's current one, else the default one."""
        if stream is None:
            self._order.stream = self._place.stream() if self._torch else 0
        else:
            self._order.stream = handle_of(stream)
        return self._order

    def written(self) -> None:
        """The engine has, and peers do in what was the model before: torch is to notice, as with `CallersArray`."""
        if self._torch and not self.models[0].is_inference():
            sys.modules["torch"].autograd.graph.increment_version(self.models)
