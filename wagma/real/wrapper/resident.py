"""Parameters that live in the engine's buffers: publishing and averaging change what they look at, and copy nothing.

Each parameter's `data` is replaced by a part of the buffer with the present model, another one after each collective. So whatever keeps
the memory of a parameter, and not the parameter, is left behind with an old model: captured CUDA graphs, `parameter.data` kept in a
variable, arrays made by `numpy()`. That is why it is an option. The other way round, a program or an optimizer that replaces `data` by
itself (`torch.nn.utils.vector_to_parameters` does) has its values brought back before they are published.

On a device all of that is done in the order of torch's current stream, which the engine follows when it publishes. The parameters get a
buffer when it is whole, and that stream is behind whatever wrote it (native/src/models_device.cpp).
"""

from __future__ import annotations

import ctypes
from typing import Any, NoReturn

import numpy.typing as npt
import torch

from wagma.core.effects import Value
from wagma.errors import CollectiveTimeout, InputError, ModelChanged
from wagma.real.devices.arrays import typestr_of
from wagma.real.devices.carrier import room
from wagma.real.devices.place import Place
from wagma.real.devices.resident import tensor_of
from wagma.real.kernel import Engine, Own
from wagma.workloads.flat import FlatView, plain

#: How long a device has for the copies that parameters get in the end; longer than it needs for any model that it can hold.
RELEASE_LIMIT_S = 10.0


def check_resident(model: FlatView, whole: torch.nn.Module, place: Place) -> None:
    """Raise InputError, naming the parameter, unless all parameters, which are at `place`, can live in one array there, and nothing of
    `whole` is left behind by that."""
    for name, parameter in model.named:
        if place.why_not:
            raise InputError(
                f"parameter {name!r} is on {parameter.device}, which wagma's kernels do not reach ({place.why_not}): resident parameters"
                " must be on the CPU, or where they do"
            )
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

    def __init__(self, model: FlatView, engine: Engine, place: Place) -> None:
        self._engine, self._where = engine, place
        self._names = [name for name, _ in model.named]
        self._parameters = model.parameters
        self._parts = [model.parts(self._buffer(model, index)) for index in range(engine.buffers)]
        # Without tensors: it has a stream.
        self._order = None if place.device is None else place.device.parts(model.kernel_dtype, [])
        self._attach()

    def _buffer(self, model: FlatView, index: int) -> torch.Tensor:
        if self._where.device is None:
            return model.tensor(self._engine.buffer(index))
        buffer = self._engine.device_buffer(index, typestr_of(model.kernel_dtype))
        whole: torch.Tensor = tensor_of(buffer, model.torch_dtype, self._where)
        return whole

    def take(self, value: Value) -> Own:
        """The engine has it; on a device it is told in whose order."""
        self._collect()
        return self._now()

    def place(self, value: Value, read: bool) -> Own:
        """The engine reads what was published, and writes into a buffer of its own."""
        return self._now()

    def _now(self) -> Own:
        if self._order is not None:
            self._order.stream = self._where.stream()
        return self._order

    def put(self, value: Value) -> None:
        """It has."""
        self._attach()

    def joined(self) -> None:
        """What was published is in another buffer now."""
        self._attach()

    def updated(self) -> None:
        """The engine's buffer has."""

    def result(self, engine: Engine) -> NoReturn:
        """Raise InputError: whoever computes with arrays would write into the published model."""
        raise InputError(
            f"rank {engine.rank}: an average with an own weight other than 0 and 1, or a divisor that is no whole number:"
            " resident must be False"
        )

    def begin(self, initial: npt.NDArray[Any]) -> None:
        """The engine has put it into its buffers. It was read before, which ended all that the program's stream did with them."""
        self._attach()

    def published(self) -> None:
        """The parameters have all bits: they are of one dtype."""

    def last(self) -> None:
        """Never asked for: gradients are not resident."""

    def settle(self, rank: int, limit_s: float) -> None:
        """All of the device's streams; host memory is always settled."""
        self._where.settle(rank, limit_s)

    def _attach(self) -> None:
        """After each collective: let the parameters look at the buffer that now holds the model."""
        for parameter, part in zip(self._parameters, self._parts[self._engine.model_index], strict=True):
            parameter.data = part
        # Other data is no new version for torch: a graph that still needs what was there has to notice.
        torch.autograd.graph.increment_version(self._parameters)

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
            with room(f"rank {self._engine.rank}: parameter {name!r}", part.nbytes, self._where):
                moved.append((parameter, part, parameter.detach().clone()))
        for parameter, part, values in moved:
            part.copy_(values)
            parameter.data = part

    def release(self) -> None:
        """Give the parameters memory of their own: the engine's may go, when it has been read.

        On a device that has no room for that, or has failed, they stay in the buffers. These stay there as long as the process does, also
        if the device does not come to its end: rather than to be freed under kernels that may still read them.
        """
        try:
            self._settle()  # whichever stream the program has used last
            for parameter in self._parameters:
                parameter.data = parameter.data.clone()
            self._settle()
        except (RuntimeError, CollectiveTimeout):  # torch's errors are of the first kind
            if self._where.device is None:
                raise
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._parts))  # at the interpreter's end, too, which empties modules

    def _settle(self) -> None:
        self.settle(self._engine.rank, RELEASE_LIMIT_S)


def resident_model(model: FlatView, engine: Engine, place: Place) -> ResidentModel:
    """Move the parameters of `model`, which are at `place`, into the engine's buffers, which are there, too, and hold the same values."""
    with torch.no_grad():
        return ResidentModel(model, engine, place)
