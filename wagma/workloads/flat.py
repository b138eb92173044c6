"""Many tensors as one flat array: what a collective carries. Parameters stay where they are; data is copied in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wagma.errors import InputError

Array = npt.NDArray[Any]
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class FlatView:
    """Parameters, read and written as one 1-D numpy array (host memory, whatever device the tensors are on).

    All have one dtype, float32 or float64; raises InputError, naming the parameter, otherwise.
    """

    def __init__(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        if not named:
            raise InputError("the model has no parameters that require a gradient")
        first = named[0][1].dtype
        for name, tensor in named:
            if tensor.dtype not in _NUMPY or tensor.dtype != first:
                allowed = first if first in _NUMPY else "float32 or float64"
                raise InputError(
                    f"parameter {name!r} has dtype {tensor.dtype}: must be {allowed}, the same for the whole model"
                )
        self.dtype = np.dtype(_NUMPY[first])
        self.named = list(named)
        self.parameters = [tensor for _, tensor in named]
        ends = np.cumsum([tensor.numel() for tensor in self.parameters]).tolist()
        self.size = int(ends[-1])
        self._slices = [slice(end - tensor.numel(), end) for end, tensor in zip(ends, self.parameters, strict=True)]

    def read(self, out: Array | None = None) -> Array:
        """All values in order: a new array of shape (size,), or `out`."""
        out = np.empty(self.size, self.dtype) if out is None else out
        target = torch.from_numpy(out)
        with torch.no_grad():
            for part, parameter in zip(self._slices, self.parameters, strict=True):
                self._read(target[part], parameter)
        return out

    def write(self, values: Array) -> None:
        """Put values of shape (size,) back into the tensors."""
        source = torch.from_numpy(values)
        with torch.no_grad():
            for part, parameter in zip(self._slices, self.parameters, strict=True):
                self._write(source[part], parameter)

    def parts(self, values: Array) -> list[torch.Tensor]:
        """Values of shape (size,) as tensors of the parameters' shapes, which share its memory."""
        whole = torch.from_numpy(values)
        return [whole[part].view(one.shape) for part, one in zip(self._slices, self.parameters, strict=True)]

    def _read(self, target: torch.Tensor, parameter: torch.Tensor) -> None:
        target.view(parameter.shape).copy_(parameter)

    def _write(self, source: torch.Tensor, parameter: torch.Tensor) -> None:
        parameter.copy_(source.view(parameter.shape))


class FlatGradient(FlatView):
    """The gradients of parameters. None is read as zeros; where another rank had a gradient and this one None, it gets the mean."""

    def _read(self, target: torch.Tensor, parameter: torch.Tensor) -> None:
        if parameter.grad is None:
            target.zero_()
        else:
            target.view(parameter.shape).copy_(parameter.grad)

    def _write(self, source: torch.Tensor, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.copy_(source.view(parameter.shape))
        elif bool(source.any()):  # left alone, this rank's model would drift away from the others'
            parameter.grad = source.view(parameter.shape).to(parameter.device, copy=True)


def flat_views(model: torch.nn.Module) -> tuple[FlatView, FlatGradient]:
    """(parameters, gradients) of a model, as flat views; frozen parameters are left out."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return FlatView(named), FlatGradient(named)
