"""Parameters that live in the engine's buffers: publishing and averaging change what they look at, and copy nothing.

Each parameter's `data` is replaced by a part of the buffer with the present model, another one after each collective. So whatever keeps
the memory of a parameter, and not the parameter, is left behind with an old model: captured CUDA graphs, `parameter.data` kept in a
variable, arrays made by `numpy()`. That is why it is an option. The other way round, a program or an optimizer that replaces `data` by
itself (`torch.nn.utils.vector_to_parameters` does) has its values brought back before they are published.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wagma.core.effects import Value
from wagma.errors import InputError, ModelChanged
from wagma.real.kernel import Engine
from wagma.workloads.flat import FlatView, plain


def check_resident(model: FlatView, whole: torch.nn.Module) -> None:
    """Raise InputError, naming the parameter, unless all parameters can live in one array in host memory, and nothing of `whole` is
    left behind by that."""
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
    _check_apart(model, whole)


def _check_apart(model: FlatView, whole: torch.nn.Module) -> None:
    """Raise InputError if a trained parameter shares memory with another tensor of the model, which would be left behind."""
    trained = {id(parameter) for parameter in model.parameters}
    taken = []
    for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]:
        if tensor.numel() and tensor.layout is torch.strided:
            reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            begin = tensor.data_ptr()
            taken.append((begin, begin + reach * tensor.element_size(), plain(name), id(tensor) in trained))
    reached, last = 0, ("", False)  # the furthest end so far, and whose it is
    for begin, end, name, moves in sorted(taken):
        if begin < reached and (moves or last[1]):
            raise InputError(
                f"parameters {last[0]!r} and {name!r} share memory: resident parameters must be one parameter or have memory of their own"
            )
        if end > reached:
            reached, last = end, (name, moves)


class ResidentModel:
    """The parameters of one model, and the engine's buffers as parts of their shapes: a `wagma.real.carriers.Carrier`."""

    def __init__(self, model: FlatView, engine: Any) -> None:
        self._engine = engine
        self._size, self._dtype = model.size, model.dtype
        self._names = [name for name, _ in model.named]
        self._parameters = model.parameters
        self._parts = [model.parts(model.tensor(engine.buffer(index))) for index in range(engine.buffers)]
        self._attach()

    def take(self, value: Value) -> None:
        """The engine has it."""
        self._collect()

    def place(self, value: Value, read: bool) -> None:
        """The engine writes into a buffer of its own."""
        if read:
            self._collect()

    def put(self, value: Value) -> None:
        """It has."""
        self._attach()

    def joined(self) -> None:
        """What was published is in another buffer now."""
        self._attach()

    def updated(self) -> None:
        """The engine's buffer has."""

    def result(self, engine: Engine) -> npt.NDArray[Any]:
        """An array of its own."""
        total = np.empty(self._size, self._dtype)
        engine.copy_result(total)
        return total

    def begin(self, initial: npt.NDArray[Any]) -> None:
        """The engine has put it into its buffers."""
        self._attach()

    def published(self) -> None:
        """The parameters have all bits: they are of one dtype."""

    def last(self) -> None:
        """Never asked for: gradients are not resident."""

    def settle(self, rank: int, limit_s: float) -> None:
        """Host memory is always settled."""

    def _attach(self) -> None:
        """After each collective: let the parameters look at the buffer that now holds the model."""
        for parameter, part in zip(self._parameters, self._parts[self._engine.model_index], strict=True):
            parameter.data = part

    def _collect(self) -> None:
        """Before each collective: values of parameters that were made to look elsewhere meanwhile come back, or they would be lost.

        Raises ModelChanged, naming the parameter, if they have another shape, dtype or device now.
        """
        moved = []
        for name, parameter, part in zip(self._names, self._parameters, self._parts[self._engine.model_index], strict=True):
            if parameter.is_set_to(part):  # memory, shape and strides: as in nearly every step of nearly every program
                continue
            if (parameter.shape, parameter.dtype, parameter.device) != (part.shape, part.dtype, part.device):
                now = f"{tuple(parameter.shape)}, {parameter.dtype} on {parameter.device}"
                before = f"{tuple(part.shape)}, {part.dtype} on {part.device}"
                raise ModelChanged(
                    f"rank {self._engine.rank}: "
                    f"parameter {name!r} was {before} at distribute, and is {now}: resident parameters must stay as they are"
                )
            # It may look at the part of another parameter (two that were swapped), or at its own one transposed: all values are taken
            # before any part is written.
            moved.append((parameter, part, parameter.detach().clone()))
        for parameter, part, values in moved:
            part.copy_(values)
            parameter.data = part

    def release(self) -> None:
        """Give the parameters memory of their own: the engine's may go."""
        for parameter in self._parameters:
            parameter.data = parameter.data.clone()


def resident_model(model: FlatView, engine: Any) -> ResidentModel:
    """Move the parameters of `model` into the engine's buffers, which hold the same values."""
    with torch.no_grad():
        return ResidentModel(model, engine)
