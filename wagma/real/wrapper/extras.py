"""What is done at syncs beside averaging the model: the optimizer's state, and the model's buffers (BatchNorm statistics).

Ranks that take part are those that have not closed. Tensors with NaN or infinity on a rank are left out of the mean there, and get the
mean of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch

from wagma.algorithms import Collectives, Specification
from wagma.core.schedule import NEVER
from wagma.errors import InputError
from wagma.real.wrapper.mean import Meetings
from wagma.workloads.flat import ALLOWED, plain

StatePolicy = Literal["local", "average", "reset"]
BufferPolicy = Literal["local", "average", "broadcast"]
_STATES, _BUFFERS = ("local", "average", "reset"), ("local", "average", "broadcast")
#: docs/training.md says which measurements these come from.
DEFAULT_STATE: StatePolicy = "local"
DEFAULT_BUFFERS: BufferPolicy = "average"
#: Those whose ranks are all in one iteration at some time; allreduce_sgd has one in every iteration, and uses those of sync_period.
SYNCING = (Collectives.EVERY, Collectives.PERIODIC, Collectives.GROUPED, Collectives.WHOLE)


@dataclass(frozen=True, slots=True)
class Policies:
    """What happens to state and buffers in every sync_period-th iteration; NEVER (0): there is none."""

    state: StatePolicy
    buffers: BufferPolicy
    sync_period: int


def policies(spec: Specification, sync_period: int, state: str | None, buffers: str | None) -> Policies:
    """The user's choice, or the defaults. Raises InputError for unknown ones, and for those that need syncs where there are none."""
    for name, value, allowed in (("optimizer_state", state, _STATES), ("buffers", buffers, _BUFFERS)):
        if value is not None and value not in allowed:
            raise InputError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")
        without = "" if spec.collectives in SYNCING else f"{spec.name} has no syncs"
        without = without or ('there are none with sync_period = "never"' if sync_period == NEVER else "")
        if without and value not in (None, "local"):
            raise InputError(f"{name} = {value!r} happens at syncs, and {without}: must be 'local'")
    if spec.collectives not in SYNCING or sync_period == NEVER:
        return Policies("local", "local", NEVER)
    return Policies(state or DEFAULT_STATE, buffers or DEFAULT_BUFFERS, sync_period)  # type: ignore[arg-type]


class Extras:
    """One rank's state and buffers. trained: the parameters, in an order that all ranks have. Without `meetings`, a rank alone."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        trained: Sequence[torch.Tensor],
        buffers: FloatBuffers,
        chosen: Policies,
        meetings: Meetings | None,
    ) -> None:
        self._optimizer = optimizer
        self._trained = trained
        self._buffers = buffers
        self._chosen = chosen
        self._meetings = meetings
        # Some optimizers make their state when they are created (Adagrad), others at the first step: back to that.
        self._first_state: dict[Any, Any] = dict(deepcopy(_by_position(optimizer))) if chosen.state == "reset" else {}
        self._averages = meetings is not None and (chosen.state == "average" or chosen.buffers != "local")

    def after(self, iteration: int) -> None:
        """The rank has ended this iteration: what is due. Raises CollectiveTimeout, PeerFailed."""
        period = self._chosen.sync_period
        if period == NEVER or (iteration + 1) % period:
            return
        if self._averages:
            self._meet(iteration)
        if self._chosen.state == "reset":
            self._reset()

    def _meet(self, iteration: int) -> None:
        assert self._meetings is not None
        buffers = self._buffers.now() if self._chosen.buffers != "local" else []
        keys = self._keys() if self._chosen.state == "average" else []
        state = list(self._slots(keys))
        present = self._meetings.meet(iteration, "sync", repr((keys, len(state))))
        if not present.alike[0]:
            raise InputError(
                f"rank {self._meetings.rank}: iteration {iteration} is a sync here, and another rank is in consolidated(); call it on all"
            )
        here = self._meetings.rank == min(present.iterations) or self._chosen.buffers == "average"
        tensors, present_here = list(buffers), [here and bool(torch.isfinite(one).all()) for one in buffers]
        # A rank whose every update was skipped has no state yet. Then it is averaged as soon as all have the same kinds of it.
        if present.alike[1]:
            for parameter, found in state:
                tensors.append(torch.empty_like(parameter, dtype=torch.float32) if found is None else found)
                present_here.append(found is not None and bool(torch.isfinite(found).all()))
        self._meetings.average(tensors, present_here)

    def _reset(self) -> None:
        self._optimizer.state.clear()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        for position, content in self._first_state.items():
            self._optimizer.state[parameters[position]] = deepcopy(content)

    def _keys(self) -> list[str]:
        state = self._optimizer.state
        return sorted({key for p in self._trained for key, value in state.get(p, {}).items() if _is_moment(key, value, p)})

    def _slots(self, keys: list[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """For each parameter and key the parameter, and its tensor if there is one.

        In the order of the model, which all ranks have: optimizers may have been given the parameters in others.
        """
        for parameter in self._trained:
            content = self._optimizer.state.get(parameter, {})
            for key in keys:
                found = content.get(key)
                yield parameter, found if _is_moment(key, found, parameter) else None


class FloatBuffers:
    """The buffers of a model that can be averaged, as they were at `distribute`; counters stay as they are."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._like = {
            plain(name): torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
            for name, buffer in model.named_buffers()
            if buffer.dtype in ALLOWED
        }

    @property
    def numbers(self) -> int:
        """How many are in them."""
        return sum(like.numel() for like in self._like.values())

    def now(self) -> list[torch.Tensor]:
        """The tensors, which the program may have replaced: the same shapes and dtypes on all ranks.

        One that is gone or has another shape now, such as a table that grows with the longest sequence seen, is this rank's own from then
        on. NaN stands for it, which nobody's mean takes in.
        """
        own = {plain(name): buffer for name, buffer in self._model.named_buffers()}
        found = []
        for name, like in self._like.items():
            buffer = own.get(name)
            if buffer is None or (buffer.shape, buffer.dtype) != (like.shape, like.dtype):
                buffer = torch.full(like.shape, float("nan"), dtype=like.dtype)
            found.append(buffer)
        return found


def _by_position(optimizer: torch.optim.Optimizer) -> dict[int, Any]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {position: optimizer.state[p] for position, p in enumerate(parameters) if p in optimizer.state}


def _is_moment(key: str, value: object, parameter: torch.Tensor) -> bool:
    """A tensor like its parameter: momentum, moments, sums of squares. Not the number of steps, which looks like a scalar's moment."""
    return key != "step" and isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dtype in ALLOWED
