"""What saving and loading a checkpoint have in common: whose it is, what of a model is in it, and how ranks speak of what failed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wagma.errors import InputError, WagmaError
from wagma.real.checkpoints.values import Tensors
from wagma.real.limited import gather_text
from wagma.workloads.flat import plain

if TYPE_CHECKING:
    from wagma.real.wrapper.optimizer import DistributedOptimizer

State = Mapping[str, Any]

_CANNOT = "cannot: "
#: What each rank has for itself.
OWN = ("optimizer", "buffers", "modules", "published", "state", "random", "extra")


@dataclass(slots=True)
class Agreed:
    """What the ranks agreed on in `distribute`, as far as a checkpoint has to know it. run: names the run, on rank 0."""

    comm: Any
    timeout_s: float
    model: torch.nn.Module
    algorithm: str
    settings: dict[str, Any]  # by their names in `distribute`
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


def agreed_of(optimizer: DistributedOptimizer) -> Agreed:
    """What `distribute` has left with it. Raises InputError for any other optimizer."""
    agreed = getattr(getattr(optimizer, "_parts", None), "agreed", None)
    if not isinstance(agreed, Agreed):
        raise InputError(f"optimizer is a {type(optimizer).__name__}: must be one that wagma.distribute has returned")
    return agreed


@contextmanager
def told(what: str) -> Iterator[None]:
    """What torch's or a program's own classes raise inside becomes InputError, one line that begins with `what`.

    Any other error would be this rank's alone, and the others would wait for it until their limit.
    """
    try:
        yield
    except WagmaError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def check_open(optimizer: DistributedOptimizer, what: str) -> None:
    """Raise InputError unless the model is now the one that the last whole iteration has left."""
    if optimizer.failed:
        raise InputError(f"{what}: a step has failed, and the model stands in the middle of iteration {optimizer.iteration}")
    if optimizer.is_consolidated:
        raise InputError(f"{what}: called inside consolidated(), whose model is not this rank's own; call it after")


def folder_of(folder: object) -> Path:
    """Raises InputError unless it is a path."""
    if not isinstance(folder, str | os.PathLike):
        raise InputError(f"folder is a {type(folder).__name__}: must be a path")
    return Path(folder)


def check_state(state: State) -> None:
    """Raise InputError, naming it, unless everything in it can be saved and loaded."""
    if not isinstance(state, Mapping):
        raise InputError(f"state is a {type(state).__name__}: must be a dict")
    for name, one in state.items():
        if not callable(getattr(one, "state_dict", None)) or not callable(getattr(one, "load_state_dict", None)):
            raise InputError(
                f"state[{name!r}] is a {type(one).__name__}: must have state_dict and load_state_dict; values go into extra"
            )


def tensors_of(model: torch.nn.Module) -> Tensors:
    """Parameters and buffers by name, each once, frozen ones and buffers that no state_dict has included."""
    return {plain(name): tensor for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def buffers_of(model: torch.nn.Module) -> Tensors:
    """The buffers alone, which may be each rank's own."""
    return {plain(name): buffer for name, buffer in model.named_buffers()}


def extra_states(model: torch.nn.Module) -> dict[str, Any]:
    """What modules keep beside parameters and buffers (torch.nn.Module.get_extra_state), by names as of a model that is not compiled."""
    return {plain(name): value for name, value in model.state_dict().items() if name.endswith("_extra_state")}


def restore_extra_states(model: torch.nn.Module, saved: dict[str, Any]) -> None:
    """saved: as `extra_states` gave it, of the same names."""
    own = {plain(name): name for name in model.state_dict() if name.endswith("_extra_state")}
    if saved:
        model.load_state_dict({own[name]: value for name, value in saved.items()}, strict=False)


def layout_of(tensors: Tensors) -> dict[str, list[Any]]:
    """Name -> [dtype, shape], as JSON has it."""
    return {name: [str(one.dtype).removeprefix("torch."), list(one.shape)] for name, one in tensors.items()}


def together(agreed: Agreed, work: Callable[[], str | None]) -> list[str]:
    """What every rank's `work` returned, by rank ("" for None). If it failed on any of them, WagmaError on all, naming the first one."""
    try:
        text = work() or ""
    except Exception as error:  # a full disk most of all; no rank may be left waiting for the one that has it
        text = f"{_CANNOT}{error if isinstance(error, OSError | WagmaError) else f'{type(error).__name__}: {error}'}"
    texts = gather_text(agreed.comm, text, agreed.timeout_s)
    for rank, text in enumerate(texts):
        if text.startswith(_CANNOT):
            raise WagmaError(f"rank {rank}: checkpoint: {text.removeprefix(_CANNOT)}")
    return texts
