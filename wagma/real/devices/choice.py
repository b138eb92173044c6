"""`wagma train --device`: which device is this rank's, or why it has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wagma.errors import InputError, MissingDependencyError, WagmaError
from wagma.real.devices.place import emulated_devices
from wagma.real.modules import cuda_native

ALLOWED = "cpu, cuda, cuda:N or emulated"


@dataclass(frozen=True, slots=True)
class Choice:
    """tensors: the device on which torch has them; emulated: those in host memory are taken for an emulated device's. str(): both."""

    tensors: str = "cpu"
    emulated: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether they are on a GPU."""
        return self.tensors.startswith("cuda")

    def __str__(self) -> str:
        return "emulated" if self.emulated else self.tensors


CPU = Choice()


def device_option(text: str) -> str:
    """`text`, if it is one of ALLOWED. Raises ValueError, saying so."""
    kind, _, index = text.partition(":")
    if text not in ("cpu", "cuda", "emulated") and not (kind == "cuda" and index.isascii() and index.isdigit()):
        raise ValueError(f"{text!r}: must be {ALLOWED}")
    return text


def choose(option: str, rank: int, local_rank: int) -> Choice:
    """What the option means on rank `rank`: for "cuda" the GPU of its number on its machine, modulo the GPUs that it sees.

    local_rank: that number, from 0; ranks may share a GPU. Raises InputError, naming the rank and the reason, if it has no such device.
    """
    device_option(option)
    if option == "cpu":
        return CPU
    if option == "emulated":
        return _emulated(rank)
    count = _gpus(option, rank)
    index = local_rank % count if option == "cuda" else int(option.partition(":")[2])
    if index >= count:
        raise _refused(option, rank, f"it sees {count} GPU{'' if count == 1 else 's'}: N must be below {count}")
    try:
        cuda_native().device(index)  # that one only: others need not be usable, and hold nothing of this process
    except WagmaError as error:
        raise _refused(option, rank, str(error)) from error
    return Choice(f"cuda:{index}")


def _emulated(rank: int) -> Choice:
    try:
        emulated_devices()
    except InputError as error:
        raise _refused("emulated", rank, str(error)) from error
    return Choice("cpu", emulated=True)


def _gpus(option: str, rank: int) -> int:
    """How many GPUs torch and wagma's kernels both reach; at least one."""
    torch = _torch()
    if torch.version.cuda is None:
        raise _refused(option, rank, f"this torch, {torch.__version__}, was built without CUDA (docs/install.md)")
    try:
        kernels = cuda_native()
    except MissingDependencyError as error:
        raise _refused(option, rank, str(error)) from error
    seen = int(kernels.devices())
    if not seen:
        raise _refused(option, rank, kernels.why_no_device)
    if not torch.cuda.is_available():
        raise _refused(option, rank, f"torch {torch.__version__} cannot use the {seen} that the driver shows")
    return min(seen, int(torch.cuda.device_count()))


def _refused(option: str, rank: int, reason: str) -> InputError:
    return InputError(f"rank {rank}: --device {option}: {reason}")


def _torch() -> Any:
    import torch

    return torch
