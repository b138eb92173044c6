"""Parameters that live in the engine's buffers: publishing and averaging change what they look at, and copy nothing.

Each parameter's `data` is replaced by a part of the buffer with the present model, another one after each collective. So whatever keeps
the memory of a parameter, and not the parameter, is left behind with an old model: captured CUDA graphs, `parameter.data` kept in a
variable, arrays made by `numpy()`. That is why it is an option.
"""

from __future__ import annotations

from typing import Any

import torch

from wagma.errors import InputError
from wagma.workloads.flat import FlatView


def check_resident(model: FlatView) -> None:
    """Raise InputError, naming the parameter, unless all parameters can live in one array in host memory."""
    for name, parameter in model.named:
        if parameter.device.type != "cpu":
            raise InputError(f"parameter {name!r} is on {parameter.device}: resident parameters must be on the CPU")
        if parameter.dtype is not model.torch_dtype:
            raise InputError(
                f"parameter {name!r} is {parameter.dtype} in a model of {model.torch_dtype}: resident parameters must be of one"
            )
        if not parameter.is_contiguous():
            raise InputError(
                f"parameter {name!r} has strides {tuple(parameter.stride())}: resident parameters must be contiguous"
            )


class ResidentModel:
    """The parameters of one model, and the engine's buffers as parts of their shapes."""

    def __init__(self, model: FlatView, engine: Any) -> None:
        self._engine = engine
        self._parameters = model.parameters
        self._parts = [model.parts(engine.buffer(index)) for index in range(engine.buffers)]
        self.attach()

    def attach(self) -> None:
        """After each collective: let the parameters look at the buffer that now holds the model."""
        for parameter, part in zip(self._parameters, self._parts[self._engine.model_index], strict=True):
            parameter.data = part

    def detach(self) -> None:
        """Give the parameters memory of their own: the engine's may go."""
        for parameter in self._parameters:
            parameter.data = parameter.data.clone()


def resident_model(model: FlatView, engine: Any) -> ResidentModel:
    """Move the parameters of `model` into the engine's buffers, which hold the same values."""
    with torch.no_grad():
        return ResidentModel(model, engine)
