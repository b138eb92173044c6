"""Many tensors as one flat array: what a collective carries. Parameters stay where they are; data is copied in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wagma.errors import InputError

Array = npt.NDArray[Any]
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class FlatView:
    """A list of tensors, read and written as one 1-D numpy array (host memory, whatever device the tensors are on).

    `tensors` is called at each access, since gradients come and go; a None is read as zeros and written as nothing. All have one
    dtype, float32 or float64; raises InputError, naming the parameter, otherwise.
    """

    def __init__(
        self, names: Sequence[str], tensors: Callable[[], Sequence[torch.Tensor | None]], like: Sequence[torch.Tensor]
    ) -> None:
        if not like:
            raise InputError("the model has no parameters that require a gradient")
        for name, tensor in zip(names, like, strict=True):
            if tensor.dtype not in _NUMPY or tensor.dtype != like[0].dtype:
                raise InputError(
                    f"parameter {name!r} has dtype {tensor.dtype}: all must be {like[0].dtype if like[0].dtype in _NUMPY else 'float32'}"
                    " (allowed: one of float32, float64 for the whole model)"
                )
        self.dtype = np.dtype(_NUMPY[like[0].dtype])
        ends = np.cumsum([tensor.numel() for tensor in like]).tolist()
        self.size = int(ends[-1])
        self._slices = [slice(end - tensor.numel(), end) for end, tensor in zip(ends, like, strict=True)]
        self._tensors = tensors

    def read(self, out: Array | None = None) -> Array:
        """All values in order: a new array of shape (size,), or `out`."""
        out = np.empty(self.size, self.dtype) if out is None else out
        target = torch.from_numpy(out)
        with torch.no_grad():
            for part, tensor in zip(self._slices, self._tensors(), strict=True):
                if tensor is None:
                    target[part].zero_()
                else:
                    target[part].view(tensor.shape).copy_(tensor)
        return out

    def write(self, values: Array) -> None:
        """Put values of shape (size,) back into the tensors."""
        source = torch.from_numpy(values)
        with torch.no_grad():
            for part, tensor in zip(self._slices, self._tensors(), strict=True):
                if tensor is not None:
                    tensor.copy_(source[part].view(tensor.shape))


def flat_views(model: torch.nn.Module) -> tuple[FlatView, FlatView]:
    """(parameters, gradients) of a model, as flat views; frozen parameters are left out."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    names, parameters = [name for name, _ in named], [p for _, p in named]
    return (
        FlatView(names, lambda: parameters, parameters),
        FlatView(names, lambda: [p.grad for p in parameters], parameters),
    )
