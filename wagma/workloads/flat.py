"""Many tensors as one flat array: what a collective carries. Parameters stay where they are; data is copied in and out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wagma.errors import InputError, ModelChanged

Array = npt.NDArray[Any]
_HALVES = (torch.float16, torch.bfloat16)
#: The dtypes of numbers that can be averaged.
ALLOWED = (*_HALVES, torch.float32, torch.float64)
#: numpy has no bfloat16: its bits travel as 16-bit integers.
_NUMPY = {torch.float16: np.float16, torch.bfloat16: np.uint16, torch.float32: np.float32, torch.float64: np.float64}


class FlatView:
    """Parameters, read and written as one 1-D numpy array (host memory, whatever device the tensors are on).

    float16, bfloat16, float32 and float64, mixed as one likes. The array has the dtype that all of them can be promoted to (float16 and
    bfloat16 together, or either with float32: float32), so that a value is rounded once, on the way back. A model that is float16
    or bfloat16 throughout travels in that; halves = False: as float32, for those who compute with the array. Raises InputError, naming the
    parameter, for any other dtype, and if there is no number in any of them; ModelChanged, beginning with `who`, once one of them has been
    given data of another shape or dtype, or on another device.
    """

    def __init__(self, named: Sequence[tuple[str, torch.Tensor]], halves: bool = True, who: str = "") -> None:
        if not named:
            raise InputError("the model has no parameters that require a gradient")
        for name, tensor in named:
            if tensor.dtype not in ALLOWED:
                allowed = ", ".join(str(dtype) for dtype in ALLOWED)
                raise InputError(f"parameter {name!r} has dtype {tensor.dtype}: must be one of {allowed}")
        common = reduce(torch.promote_types, (tensor.dtype for _, tensor in named))
        if common in _HALVES and not halves:
            common = torch.float32
        self.torch_dtype = common
        self.dtype = np.dtype(_NUMPY[common])  # of the array; uint16 for bfloat16
        self.kernel_dtype = str(common).removeprefix("torch.")  # as the kernel calls what is in it
        self.exact = all(tensor.dtype == common for _, tensor in named)  # else parameters hold what is in the array rounded
        self.named = list(named)
        self.parameters = [tensor for _, tensor in named]
        self.shapes = [tensor.shape for tensor in self.parameters]
        self.who = who
        self._before = [(tensor.shape, tensor.dtype, tensor.device) for tensor in self.parameters]
        ends = np.cumsum([tensor.numel() for tensor in self.parameters]).tolist()
        self.size = int(ends[-1])
        if not self.size:
            raise InputError(f"the model's parameters are empty: {named[0][0]!r} has shape {tuple(named[0][1].shape)}")
        self._slices = [slice(end - tensor.numel(), end) for end, tensor in zip(ends, self.parameters, strict=True)]

    def read(self, out: Array | None = None) -> Array:
        """All values in order: a new array of shape (size,), or `out`."""
        out = np.empty(self.size, self.dtype) if out is None else out
        with torch.no_grad():
            for target, parameter in zip(self.parts(self.tensor(out)), self.unchanged(), strict=True):
                self._read(target, parameter)
        return out

    def write(self, values: Array) -> None:
        """Put values of shape (size,) back into the tensors."""
        with torch.no_grad():
            for source, parameter in zip(self.parts(self.tensor(values)), self.unchanged(), strict=True):
                self._write(source, parameter)

    def parts(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """A tensor of shape (size,) as ones of the parameters' shapes, which share its memory."""
        return [whole[part].view(shape) for part, shape in zip(self._slices, self.shapes, strict=True)]

    def unchanged(self) -> Iterator[torch.Tensor]:
        """The parameters. Raises ModelChanged at one that is not what it was."""
        for (name, parameter), before in zip(self.named, self._before, strict=True):
            if (parameter.shape, parameter.dtype, parameter.device) != before:
                raise self._changed(name, parameter, *before)
            yield parameter

    def _changed(
        self, name: str, now: torch.Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> ModelChanged:
        if now.shape != shape:
            what = f"has shape {tuple(now.shape)} since distribute, and had {tuple(shape)}"
        elif now.dtype != dtype:
            what = f"is {now.dtype} since distribute, and was {dtype}"
        else:
            what = f"is on {now.device} since distribute, and was on {device}"
        return ModelChanged(f"{self.who}parameter {name!r} {what}; wrap anew after the change")

    def tensor(self, values: Array) -> torch.Tensor:
        """Values of shape (size,) as a tensor that shares their memory."""
        whole = torch.from_numpy(values)
        return whole.view(torch.bfloat16) if self.torch_dtype is torch.bfloat16 else whole

    def own(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """What of a parameter is in the array; None: nothing, which is read as zeros."""
        return parameter

    def _read(self, target: torch.Tensor, parameter: torch.Tensor) -> None:
        found = self.own(parameter)
        if found is None:
            target.zero_()
        else:
            target.copy_(found)

    def _write(self, source: torch.Tensor, parameter: torch.Tensor) -> None:
        parameter.copy_(source)


class FlatGradient(FlatView):
    """The gradients of parameters. None is read as zeros; where another rank had a gradient and this one None, it gets the mean."""

    def own(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """The gradient."""
        return parameter.grad

    def _write(self, source: torch.Tensor, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.copy_(source)
        elif bool(source.any()):  # left alone, this rank's model would drift away from the others'
            parameter.grad = source.to(parameter.device, parameter.dtype, copy=True)


def flat_views(model: torch.nn.Module, halves: bool = True, who: str = "") -> tuple[FlatView, FlatGradient]:
    """(parameters, gradients) of a model, as flat views; frozen parameters are left out. halves, who: as in FlatView."""
    named = [(plain(name), parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return FlatView(named, halves, who), FlatGradient(named, halves, who)


def plain(name: str) -> str:
    """A parameter's name as it is in a model that has not been compiled."""
    return name.replace("_orig_mod.", "")
