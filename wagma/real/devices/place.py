"""Where a rank's tensors are: in the host's memory or on a device, and whether wagma's kernels reach them there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wagma.errors import CollectiveTimeout, InputError, WagmaError
from wagma.real.limited import ended_within
from wagma.real.modules import cuda_native, native

if TYPE_CHECKING:
    from wagma import _native

Kind = Literal["cpu", "cuda", "emulated"]


@dataclass(frozen=True, slots=True)
class Place:
    """The host's memory, a CUDA device or an emulated one.

    index: of the device among those that this process sees. device: the native one; None: host memory, or a device that wagma's kernels do
    not reach (`why_not`), whose tensors torch then copies to the host and back.
    """

    kind: Kind
    index: int = 0
    device: _native.Device | None = None
    why_not: str = ""

    @property
    def on_device(self) -> bool:
        """Whether kernels work on the tensors where they are."""
        return self.device is not None

    def stream(self) -> int:
        """The handle of torch's current stream on this device and thread; 0 (the default one) where torch has none."""
        return int(_torch().cuda.current_stream(self.index).cuda_stream) if self.kind == "cuda" else 0

    def settle(self, rank: int, limit_s: float) -> None:
        """Until the device has done all that the program has given it, on whichever stream. For the ends of things, not for a loop.

        Raises CollectiveTimeout if it has not after `limit_s` seconds, and what torch does where the device has failed. Ctrl-C ends it.
        """
        if self.kind == "cuda" and not ended_within(limit_s, lambda: _torch().cuda.synchronize(self.index)):
            raise CollectiveTimeout(f"rank {rank}: {self} is not done with what the program gave it after {limit_s:g} s")

    def __str__(self) -> str:
        name = self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"
        return name if self.device is None or self.device.name == self.kind else f"{name} ({self.device.name})"


HOST = Place("cpu")


def place_at(kind: str, index: int = 0) -> Place:
    """The place of a tensor on that device: `kind` as torch calls it, or "emulated".

    A GPU that wagma's kernels do not reach is one without `device`, which says why. Raises InputError for an emulated device that there is
    not, and for kinds that are none of these.
    """
    match kind:
        case "cpu":
            return HOST
        case "cuda":
            try:
                return Place("cuda", index, cuda_native().device(index))
            except WagmaError as error:
                return Place("cuda", index, None, str(error))
        case "emulated":
            try:
                emulated_devices()
                return Place("emulated", index, native().emulated_device(index))
            except WagmaError as error:
                raise InputError(f"device = 'emulated': {error}") from error
    raise InputError(f"tensors on {kind!r}: must be on the CPU or on a CUDA device")


def emulated_devices() -> int:
    """How many emulated devices there are; at least one.

    Raises InputError, naming the variable: one of WAGMA_EMULATED_* has a value that is not allowed, or says that there is none.
    """
    try:
        there = int(native().emulated_devices())
    except ValueError as error:
        raise InputError(str(error)) from error
    if not there:
        raise InputError("WAGMA_EMULATED_DEVICES = 0 says that there is none: must be at least 1")
    return there


def emulated_index(rank: int) -> int:
    """Which of the emulated devices is rank `rank`'s: they take turns, as GPUs do. Raises InputError if there is none."""
    try:
        return rank % emulated_devices()
    except InputError as error:
        raise InputError(f"device = 'emulated': {error}") from error


def check_device(device: object) -> None:
    """Raise InputError unless it is None (where the tensors are) or "emulated"."""
    if device not in (None, "emulated"):
        raise InputError(f"device = {device!r}: must be None (where the tensors are) or 'emulated'")


def _torch() -> Any:
    import torch

    return torch
