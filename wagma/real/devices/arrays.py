"""One-dimensional arrays in a device's memory, of whatever library: where they are, of which dtype, and in which stream's order.

torch tensors are asked themselves (bfloat16 has no typestr); everything else by `__cuda_array_interface__`, version 2 or 3
(https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html): cupy, numba, and what a program makes itself. For the emulated
device, whose memory is the host's, numpy arrays and torch tensors on the CPU do as well.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.errors import InputError

ITEM_BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
DTYPES = tuple(ITEM_BYTES)
_FLOATS = {"f4": "float32", "f8": "float64", "f2": "float16"}
_BITS = ("i2", "u2", "V2")  # 16-bit items in which bfloat16s are kept; cupy calls those of ml_dtypes V2
_INTERFACE = "__cuda_array_interface__"


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """Where an array is at this moment.

    address: of its first element. dtype: one of DTYPES. on_host: in host memory. index: of the CUDA device, None where the array does
    not say. stream: the handle of the stream in whose order its library works on it now; 0 is the default stream.
    """

    address: int
    count: int
    dtype: str
    on_host: bool
    index: int | None = None
    stream: int = 0

    @property
    def bytes(self) -> int:
        """Of all of it."""
        return self.count * ITEM_BYTES[self.dtype]

    def same(self, other: DeviceArray) -> bool:
        """Whether it is the same array, though it may have moved within its memory."""
        return (self.count, self.dtype, self.on_host, self.index) == (other.count, other.dtype, other.on_host, other.index)

    def __str__(self) -> str:
        where = "host memory" if self.on_host else "a CUDA device" if self.index is None else f"cuda:{self.index}"
        return f"{self.count} elements of {self.dtype} in {where}"


def is_tensor(buffer: object) -> bool:
    """Whether it is torch's, which need not be installed."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(buffer, torch.Tensor)


def typestr_of(dtype: str, like: Any = None) -> str:
    """How items of one of DTYPES are called where arrays are described: as `like` has them; None: as in numpy, bfloat16s as integers."""
    if isinstance(like, np.ndarray):
        return str(like.dtype.str)
    if like is not None:
        return str(getattr(like, _INTERFACE)["typestr"])
    return np.dtype({"bfloat16": "int16"}.get(dtype, dtype)).str


def on_device(buffer: object) -> bool:
    """Whether the array says itself that it is in a CUDA device's memory."""
    return bool(buffer.is_cuda) if is_tensor(buffer) else hasattr(buffer, _INTERFACE)  # type: ignore[attr-defined]


def locate(buffer: Any, dtype: str | None = None) -> DeviceArray:
    """Raises InputError, naming what is wrong, unless it is 1-D, contiguous, writeable, not empty and of one of DTYPES.

    dtype: "bfloat16" for 16-bit items that hold bfloat16s in a library that does not know them; None: what the array says.
    """
    if dtype not in (None, "bfloat16"):
        raise InputError(f"dtype = {dtype!r}: must be 'bfloat16' with 16-bit items, or None")
    if is_tensor(buffer):
        return _tensor(buffer, dtype)
    if hasattr(buffer, _INTERFACE):
        return _interfaced(buffer, dtype)
    if isinstance(buffer, np.ndarray):
        return _array(buffer, dtype)
    raise InputError(
        f"buffer is a {type(buffer).__name__}: must be a numpy array, a torch tensor or an object with {_INTERFACE}"
    )


def _tensor(tensor: Any, dtype: str | None) -> DeviceArray:
    if tensor.device.type not in ("cuda", "cpu"):
        raise InputError(f"buffer is a torch tensor on {tensor.device}: must be on a CUDA device")
    if tensor.layout != sys.modules["torch"].strided:
        raise InputError(f"buffer is a torch tensor with layout {tensor.layout}: must be dense")
    name = str(tensor.dtype).removeprefix("torch.")
    if dtype is not None and (name == dtype or name in ("int16", "uint16")):
        name = dtype
    elif name not in DTYPES or dtype is not None:
        raise _wrong_dtype(name, dtype, name in ("int16", "uint16"))
    _check_shape(tuple(tensor.shape), tensor.is_contiguous(), True)
    if not tensor.is_cuda:
        return DeviceArray(tensor.data_ptr(), tensor.numel(), name, True)
    stream = sys.modules["torch"].cuda.current_stream(tensor.device).cuda_stream
    return DeviceArray(tensor.data_ptr(), tensor.numel(), name, False, tensor.device.index, stream)


def _interfaced(buffer: Any, dtype: str | None) -> DeviceArray:
    told = getattr(buffer, _INTERFACE)
    try:
        shape, typestr, (address, read_only) = tuple(told["shape"]), told["typestr"], told["data"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"buffer is a {type(buffer).__name__} whose {_INTERFACE} lacks shape, typestr or data") from None
    if told.get("mask") is not None:
        raise InputError(f"buffer is a {type(buffer).__name__} with a mask: must be a plain array")
    name = _name(typestr, dtype)
    strides = told.get("strides")
    _check_shape(shape, strides is None or tuple(strides) == (ITEM_BYTES[name],), not read_only)
    # None: nobody works on it; 1 and 2 are CUDA's own handles of the legacy and the thread's default stream.
    return DeviceArray(int(address), shape[0], name, False, _index(buffer), int(told.get("stream") or 0))


def _array(array: npt.NDArray[Any], dtype: str | None) -> DeviceArray:
    name = _name(array.dtype.str, dtype, str(array.dtype))
    _check_shape(array.shape, array.flags.c_contiguous, array.flags.writeable)
    return DeviceArray(array.ctypes.data, array.size, name, True)


def _name(typestr: str, dtype: str | None, shown: str | None = None) -> str:
    native = ">" if sys.byteorder == "little" else "<"
    kind = typestr[1:]
    if typestr[0] != native:
        if dtype is not None and kind in _BITS:
            return dtype
        if dtype is None and kind in _FLOATS:
            return _FLOATS[kind]
    raise _wrong_dtype(shown or typestr, dtype, typestr[0] != native and kind in _BITS)


def _wrong_dtype(name: str, dtype: str | None, bits: bool) -> InputError:
    """bits: it has 16-bit items, which may be bfloat16s."""
    if dtype is not None:
        return InputError(f"dtype = {dtype!r} with a buffer of {name}: must be 'bfloat16' with 16-bit integers, or None")
    hint = "; if it holds bfloat16s, with dtype='bfloat16'" if bits else ""
    return InputError(f"buffer has dtype {name}: must be float32, float64 or float16, or bfloat16 in torch{hint}")


def _check_shape(shape: tuple[int, ...], contiguous: bool, writeable: bool) -> None:
    if len(shape) != 1 or not contiguous or not writeable or shape[0] == 0:
        raise InputError(f"buffer has shape {shape}: must be 1-D, C-contiguous, writeable and not empty")


def _index(buffer: Any) -> int | None:
    """By the standard's own question (cupy, torch, newer numba), else None."""
    ask = getattr(buffer, "__dlpack_device__", None)
    return None if ask is None else int(ask()[1])


def handle_of(stream: Any) -> int:
    """The handle of a stream: a number, or a stream of torch, cupy, numba, cuda.core or the emulated device. Raises InputError."""
    ask = getattr(stream, "__cuda_stream__", None)
    if ask is not None:  # (version, handle): https://nvidia.github.io/cuda-python/cuda-core/latest/interoperability.html
        return int(ask()[1])
    if isinstance(stream, bool) or (isinstance(stream, int) and stream < 0):
        raise InputError(f"stream = {stream!r}: must be a stream, or its handle")
    if isinstance(stream, int):
        return stream
    for name in ("cuda_stream", "ptr", "handle"):  # torch; cupy; numba, as a ctypes pointer, and the emulated device
        if hasattr(stream, name):
            handle = getattr(stream, name)
            return int(getattr(handle, "value", handle) or 0)
    raise InputError(f"stream is a {type(stream).__name__}: must be a stream, or its handle")
