"""Arrays of other libraries as the collective takes them: what they say of themselves, and what is refused, in one line."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wagma.errors import InputError
from wagma.real.devices.arrays import DTYPES, handle_of, locate, on_device


class Array:
    """Somebody's array on a device; nothing is at that address."""

    def __init__(self, **changes: Any) -> None:
        self.told = {"shape": (12,), "typestr": "<f4", "data": (4096, False), "strides": None, "version": 3} | changes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.told


def test_an_array_says_where_it_is() -> None:
    found = locate(Array(stream=7))
    assert (found.address, found.count, found.dtype, found.on_host, found.index, found.stream) == (
        4096,
        12,
        "float32",
        False,
        None,
        7,
    )
    assert found.bytes == 48
    assert str(found) == "12 elements of float32 in a CUDA device"
    assert locate(Array(strides=(4,))).count == 12
    assert [locate(Array(stream=stream)).stream for stream in (None, 1, 2)] == [0, 1, 2]
    assert locate(Array()).stream == 0  # version 2 has no streams
    assert [locate(Array(typestr=text)).dtype for text in ("<f4", "<f8", "<f2")] == list(DTYPES[:3])
    assert [locate(Array(typestr=text), "bfloat16").dtype for text in ("<u2", "<i2", "|V2")] == ["bfloat16"] * 3


def test_the_device_is_asked_for_by_the_standard() -> None:
    array = Array()
    array.__dlpack_device__ = lambda: (2, 3)  # type: ignore[attr-defined]
    assert locate(array).index == 3
    assert str(locate(array)).endswith("in cuda:3")
    assert not locate(array).same(locate(Array()))


def test_numpys_arrays_are_in_host_memory() -> None:
    values = np.zeros(5, np.float16)
    found = locate(values)
    assert (found.address, found.count, found.dtype, found.on_host, found.stream) == (values.ctypes.data, 5, "float16", True, 0)
    assert locate(np.zeros(5, np.uint16), "bfloat16").dtype == "bfloat16"
    assert (on_device(values), on_device(Array())) == (False, True)


def test_tensors_of_torch_know_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(5, dtype=torch.bfloat16)
    found = locate(tensor)
    assert (found.address, found.count, found.dtype, found.on_host) == (tensor.data_ptr(), 5, "bfloat16", True)
    assert locate(tensor, "bfloat16") == found
    assert locate(torch.zeros(5, dtype=torch.int16), "bfloat16").dtype == "bfloat16"
    assert not on_device(tensor)
    for wrong in (torch.zeros(2, 2), torch.zeros(8)[::2], torch.zeros(0)):
        with pytest.raises(InputError, match="must be 1-D, C-contiguous, writeable and not empty"):
            locate(wrong)
    with pytest.raises(InputError, match="buffer has dtype int64: must be float32, float64 or float16, or bfloat16 in torch"):
        locate(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="on meta: must be on a CUDA device"):
        locate(torch.zeros(3, device="meta"))
    with pytest.raises(InputError, match=r"layout torch\.sparse_coo: must be dense"):
        locate(torch.zeros(3).to_sparse())


@pytest.mark.parametrize(
    ("buffer", "dtype", "message"),
    [
        ([0.0], None, "buffer is a list: must be a numpy array, a torch tensor or an object with __cuda_array_interface__"),
        (Array(shape=(3, 4)), None, r"shape \(3, 4\): must be 1-D, C-contiguous, writeable and not empty"),
        (Array(shape=()), None, r"shape \(\): must be 1-D"),
        (Array(shape=(0,)), None, "not empty"),
        (Array(strides=(8,)), None, "C-contiguous"),
        (Array(data=(4096, True)), None, "writeable"),
        (Array(typestr="<i4"), None, "dtype <i4: must be float32, float64 or float16"),
        (Array(typestr=">f4"), None, "dtype >f4"),
        (Array(typestr="<u2"), None, "dtype <u2: must be .*; if it holds bfloat16s, with dtype='bfloat16'$"),
        (np.zeros(3, np.uint16), None, "dtype uint16: must be .*; if it holds bfloat16s, with dtype='bfloat16'$"),
        (np.zeros(3, np.uint32), None, "or bfloat16 in torch$"),
        (Array(), "bfloat16", "dtype = 'bfloat16' with a buffer of <f4: must be 'bfloat16' with 16-bit integers"),
        (Array(), "float32", "dtype = 'float32': must be 'bfloat16'"),
        (Array(data=None), None, "Array whose __cuda_array_interface__ lacks shape, typestr or data"),
        (Array(mask=Array()), None, "Array with a mask"),
        (np.zeros(3, np.float32), "bfloat16", "with a buffer of float32"),
        (np.zeros(3, np.float16), "bfloat16", "with a buffer of float16"),
    ],
)
def test_what_cannot_be_averaged_is_one_line(buffer: Any, dtype: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        locate(buffer, dtype)
    assert "\n" not in str(caught.value)


def test_streams_of_every_library_have_a_handle() -> None:
    torchs, cupys = SimpleNamespace(cuda_stream=5, device=0), SimpleNamespace(ptr=6)
    numbas = [SimpleNamespace(handle=ctypes.c_void_p(value)) for value in (7, 0)]
    cores, emulated = SimpleNamespace(__cuda_stream__=lambda: (0, 8)), SimpleNamespace(handle=9)
    assert [handle_of(one) for one in (0, 4, torchs, cupys, *numbas, cores, emulated)] == [0, 4, 5, 6, 7, 0, 8, 9]
    for wrong in (-1, True, "stream", 1.5):
        with pytest.raises(InputError, match=r"^stream .*: must be a stream, or its handle$"):
            handle_of(wrong)


# -- what `GroupAllreduce` makes of them -----------------------------------------------------------------------------------


def refused(**options: Any) -> str:
    """What two ranks are told, both alike, where rank 1 hands in something else: the error's type there, and its text."""
    pytest.importorskip("wagma._native")
    from wagma import GroupAllreduce
    from wagma.real.local import run_local

    said: dict[int, BaseException] = {}

    def program(comm: Any) -> None:
        own = options if comm.rank == 1 else {}
        buffer = own.get("buffer", np.zeros(4, np.float32))
        with pytest.raises(Exception, match="rank 1") as caught:
            GroupAllreduce(comm, buffer, 2, 2, **{name: value for name, value in own.items() if name != "buffer"})
        said[comm.rank] = caught.value

    run_local(2, program)
    assert str(said[0]) == str(said[1])
    assert "\n" not in str(said[0])
    return f"{type(said[1]).__name__}: {said[1]}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"device": "rocm"},
            "InputError: rank 1: device = 'rocm': must be None (where the buffer is), 'cuda', 'cuda:N' or 'emulated'",
        ),
        ({"device": "cuda:x"}, "InputError: rank 1: device = 'cuda:x': must be None"),
        ({"device": 0}, "InputError: rank 1: device = 0: must be None"),
        ({"device": "cuda:1"}, "InputError: rank 1: device = 'cuda:1': the buffer is in host memory; must be on that device"),
        ({"buffer": Array(shape=(2, 2))}, "InputError: rank 1: buffer has shape (2, 2): must be 1-D"),
    ],
)
def test_wrong_devices_are_refused_on_all_ranks(options: dict[str, Any], message: str) -> None:
    assert refused(**options).startswith(message)


def test_a_tensor_on_the_cpu_is_not_on_a_device() -> None:
    torch = pytest.importorskip("torch")
    said = refused(buffer=torch.zeros(4))
    assert said == (
        "InputError: rank 1: buffer is a torch tensor on cpu: must be on a CUDA device, a numpy array (buffer.numpy()),"
        " or given with device='emulated'"
    )
    said = refused(buffer=torch.zeros(4, dtype=torch.bfloat16))
    assert "(buffer.view(torch.int16).numpy() with dtype='bfloat16')" in said
    said = refused(buffer=torch.zeros(4, device="meta"), device="emulated")
    assert said == "InputError: rank 1: device = 'emulated' with a torch tensor on meta: must be on the CPU"


def test_a_gpu_without_kernels_or_driver_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wagma._native")
    from wagma.real.devices import callers
    from wagma.real.devices.place import Place

    monkeypatch.setattr(callers, "place_at", lambda kind, index: Place("cuda", index, None, "no nvcc was found"))
    said = refused(buffer=Array(), device="cuda:0")
    assert said == (
        "MissingDependencyError: rank 1: buffer is on cuda:0, which wagma's kernels do not reach: no nvcc was found"
    )


def test_an_array_that_has_changed_is_refused() -> None:
    pytest.importorskip("wagma._native")
    from wagma import GroupAllreduce
    from wagma.errors import ModelChanged
    from wagma.real.local import run_local

    def program(comm: Any) -> None:
        values = np.zeros(4, np.float32)
        array = Array(shape=(4,), data=(values.ctypes.data, False))
        with GroupAllreduce(comm, array, 1, "never", device="emulated") as collective:
            collective.average()
            moved = np.ones(4, np.float32)
            array.told["data"] = (moved.ctypes.data, False)  # within its memory it may
            collective.average()
            assert (moved == 1).all()
            array.told["shape"] = (3,)
            with pytest.raises(
                ModelChanged, match=r"rank 0: the buffer is 3 elements of float32 .*, and was 4 elements of float32"
            ):
                collective.average()
            array.told["shape"] = (4,)
            with pytest.raises(InputError, match=r"^stream is a str: must be a stream"):
                collective.average(stream="mine")
        host = np.zeros(4, np.float32)
        with (
            GroupAllreduce(comm, host, 1, "never") as collective,
            pytest.raises(InputError, match="in host memory, which has none"),
        ):
            collective.average(stream=3)

    run_local(1, program)
