"""What the tests of device tensors run on: the emulated device everywhere, and a GPU where there is one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from wagma.errors import MissingDependencyError
from wagma.real.devices.place import place_at
from wagma.real.modules import cuda_native


@lru_cache(maxsize=1)
def why_no_gpu() -> str:
    """Why nothing can run on a GPU here; empty: it can. Asked of the kernels first, whose answer says what to do."""
    try:
        kernels = cuda_native()
    except MissingDependencyError as error:
        return str(error)
    if not kernels.devices():
        return f"no GPU: {kernels.why_no_device}"
    try:
        import torch
    except ImportError:
        return "there is a GPU, and no torch"
    if not torch.cuda.is_available():
        return f"there is a GPU, which this torch ({torch.__version__}) cannot use: install one with CUDA (docs/install.md)"
    return place_at("cuda", 0).why_not


def _gpu() -> Any:
    reason = why_no_gpu()
    return pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(bool(reason), reason=reason or "there is one")])


#: For pytest.mark.parametrize.
DEVICES = ["emulated", _gpu()]


def option(device: str) -> Any:
    """The option `device` of distribute and GroupAllreduce for tensors that are there."""
    return "emulated" if device == "emulated" else None


def tensors(device: str) -> str:
    """Where torch has them: on one GPU all ranks share the first."""
    return "cpu" if device == "emulated" else "cuda:0"


__all__ = ["DEVICES", "option", "tensors", "why_no_gpu"]
