"""Where a model is: all of its trained parameters on one device."""

from __future__ import annotations

from wagma.errors import InputError
from wagma.real.devices.place import Place, emulated_index, place_at
from wagma.workloads.flat import FlatView


def place_of(model: FlatView, device: str | None, rank: int) -> Place:
    """The place of its parameters; device: "emulated", which takes those in host memory for an emulated device's.

    Raises InputError, naming parameters, if they are on several devices, or not where `device` says.
    """
    first, where = model.named[0][0], model.parameters[0].device
    for name, parameter in model.named:
        if parameter.device != where:
            raise InputError(
                f"parameter {first!r} is on {where}, and {name!r} on {parameter.device}: all trained parameters must be on one device"
            )
    if device == "emulated":
        if where.type != "cpu":
            raise InputError(f"device = 'emulated': parameter {first!r} is on {where}: must be on the CPU")
        return place_at("emulated", emulated_index(rank))
    if where.type not in ("cpu", "cuda"):
        raise InputError(f"parameter {first!r} is on {where}: must be on the CPU or on a CUDA device")
    return place_at(where.type, where.index or 0)
