"""The CUDA module as it was built here: what is in it, what it needs, and what it says where there is no GPU."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from elf import Library

import wagma
from wagma.errors import DeviceError

pytest.importorskip("wagma._native")


@pytest.fixture
def module() -> Any:
    return import_module("wagma._native_cuda")


def test_the_module_that_was_built(module: Any) -> None:
    if module.why_not is not None:
        assert module.architectures == ()
        assert module.devices() == 0
        assert "cannot compile native/device" not in module.why_not  # nvcc can compile something, but not this
        pytest.skip(f"built without kernels: {module.why_not}")
    assert module.architectures


def test_the_module_carries_what_it_says(module: Any) -> None:
    """And needs no CUDA where it runs, nor lets another CUDA runtime of the process take the place of its own."""
    library = Library.read(Path(module.__file__))
    assert library.gpu_codes() == set(module.architectures)
    assert not [name for name in library.needed() if "cuda" in name or "nv" in name]
    assert not [name for name in library.dynamic_symbols() if name.startswith(("cuda", "__cuda", "cu"))]


def test_devices_are_counted_without_raising(module: Any) -> None:
    count, why = module.devices(), module.why_no_device
    assert isinstance(count, int)
    assert (count == 0) == bool(why)
    assert "\n" not in why
    if module.why_not is not None:
        assert why == f"wagma was built without CUDA: {module.why_not}"
    elif not any(map(Path.exists, map(Path, ("/dev/nvidiactl", "/dev/dxg")))):
        assert count == 0
        assert "driver" in why
    with pytest.raises(DeviceError, match=f"cuda:{count}"):
        module.device(count)


def test_stub(module: Any) -> None:
    """wagma/_native_cuda.pyi; `why_no_device` is computed when it is asked for."""
    from test_native_stub import present, stubbed

    text = Path(wagma.__file__).with_name("_native_cuda.pyi").read_text()
    assert stubbed(ast.parse(text).body) == present(module) | {"why_no_device": set()}
    assert not hasattr(module, "why")
