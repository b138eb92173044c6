"""The caller's own array in `GroupAllreduce`, as the engine takes it: in host memory, or in a device's."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.errors import InputError, MissingDependencyError, ModelChanged
from wagma.real.devices.arrays import DeviceArray, handle_of, is_tensor, locate, on_device
from wagma.real.devices.place import HOST, Place, emulated_index, place_at
from wagma.real.modules import cuda_native

#: What numpy has no name for is kept in these.
_STORED = {"bfloat16": np.dtype(np.uint16)}


class CallersArray:
    """A 1-D array that the caller works on and the engine reads and writes.

    device: None (where the array is), "cuda" or "cuda:N" (the same, checked; it says which one for arrays that do not know), or "emulated".
    rank: takes turns in emulated devices. Raises InputError for what cannot be averaged, MissingDependencyError for a GPU without kernels.
    """

    def __init__(self, buffer: Any, dtype: str | None, device: str | None, rank: int) -> None:
        self.array = buffer
        self._dtype = dtype
        self._rank = rank
        if device == "emulated" and is_tensor(buffer) and buffer.device.type != "cpu":
            raise InputError(f"device = 'emulated' with a torch tensor on {buffer.device}: must be on the CPU")
        self._first = locate(buffer, dtype)
        self.place = _place_of(buffer, self._first, device, rank)
        self._parts: Any = None
        self._address = 0  # what the parts have

    def __str__(self) -> str:
        """What has to be the same on all ranks, wherever it lies."""
        return f"{self._first.count} elements of {self._first.dtype}"

    @property
    def dtype(self) -> str:
        """As the kernel calls it."""
        return self._first.dtype

    def initial(self) -> npt.NDArray[Any]:
        """What is in it, in the order of its library's current stream, as an array in host memory."""
        if not self.place.on_device:
            return self.array  # type: ignore[no-any-return]
        now = self._locate()
        values = np.empty(now.count, _STORED.get(now.dtype, now.dtype))
        assert self.place.device is not None
        self.place.device.copy(values.ctypes.data, now.address, now.bytes, now.stream)
        return values

    def own(self, stream: Any = None) -> Any:
        """Of an array on a device: its parts, for the engine's next call.

        stream: in whose order the caller works on it; None: the library's current one. Raises ModelChanged if the array is another one now.
        """
        assert self.place.device is not None
        now = self._locate()
        if self._parts is None:
            self._parts = self.place.device.parts(now.dtype, [(now.address, now.count, now.dtype)])
        elif now.address != self._address:  # a copy to the device, which kernels wait for
            self._parts.place([now.address])
        self._address = now.address
        self._parts.stream = now.stream if stream is None else handle_of(stream)
        return self._parts

    def written(self) -> None:
        """The engine has: torch, which does not see what kernels write, is to notice where a graph still needs what was there."""
        if self._parts is not None and is_tensor(self.array) and not self.array.is_inference():
            sys.modules["torch"].autograd.graph.increment_version(self.array)

    def _locate(self) -> DeviceArray:
        now = locate(self.array, self._dtype)
        if not now.same(self._first):
            raise ModelChanged(
                f"rank {self._rank}: the buffer is {now} now, and was {self._first} when the collective was made; make another one"
            )
        return now


def _place_of(buffer: Any, found: DeviceArray, device: str | None, rank: int) -> Place:
    if device == "emulated":
        return place_at("emulated", emulated_index(rank))
    asked = _index(device)
    if not on_device(buffer):
        if device is not None:
            raise InputError(f"device = {device!r}: the buffer is in host memory; must be on that device, or device='emulated'")
        if not isinstance(buffer, np.ndarray):
            raise InputError(
                f"buffer is a torch tensor on {buffer.device}: must be on a CUDA device, a numpy array ({_as_numpys(buffer)}),"
                " or given with device='emulated'"
            )
        return HOST
    if asked is not None and found.index not in (None, asked):
        raise InputError(f"device = {device!r}: the buffer is on cuda:{found.index}")
    index = found.index if asked is None else asked
    if index is None:  # numba's older arrays do not say
        if cuda_native().devices() > 1:
            raise InputError(
                f"buffer is a {type(buffer).__name__}, which does not say on which GPU it is: device='cuda:N' does"
            )
        index = 0
    place = place_at("cuda", index)
    if not place.on_device:
        raise MissingDependencyError(f"buffer is on cuda:{index}, which wagma's kernels do not reach: {place.why_not}")
    return place


def _as_numpys(tensor: Any) -> str:
    """How a tensor in host memory is handed in as numpy's array of the same memory."""
    detached = "buffer.detach()" if tensor.requires_grad else "buffer"
    if tensor.dtype == sys.modules["torch"].bfloat16:  # which numpy does not know
        return f"{detached}.view(torch.int16).numpy() with dtype='bfloat16'"
    return f"{detached}.numpy()"


def _index(device: Any) -> int | None:
    """Which CUDA device was asked for; None where it does not matter."""
    if device in (None, "cuda"):
        return None
    named = re.fullmatch(r"cuda:(\d{1,4})", device) if isinstance(device, str) else None
    if named is None:
        raise InputError(f"device = {device!r}: must be None (where the buffer is), 'cuda', 'cuda:N' or 'emulated'")
    return int(named[1])
