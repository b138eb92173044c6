"""The entrance for PyTorch users: an optimizer whose step also joins the algorithm's collectives.

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = wagma.distribute(optimizer, model, algorithm="wagma_sgd", group_size="sqrt", sync_period=10)

Nothing else in the loop changes: zero_grad, backward, step.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from inspect import Parameter, signature
from types import TracebackType
from typing import Any, Self, overload

import torch

from wagma.algorithms import Collectives, Specification, specification
from wagma.core.effects import Value
from wagma.core.schedule import Schedule
from wagma.errors import InputError
from wagma.real.algorithms import require_models, require_real
from wagma.real.driver import RankDriver
from wagma.real.kernel import Engine, is_orderly, require, world
from wagma.real.limited import agree, broadcast
from wagma.real.node import Transport
from wagma.real.recorder import Notes, Recorder
from wagma.real.resident import ResidentModel, check_resident, resident_model
from wagma.scenario import resolve_group_size, resolve_sync_period
from wagma.workloads.flat import FlatView, flat_views


class DistributedOptimizer(torch.optim.Optimizer):
    """A torch optimizer and its rank's side of an algorithm; made by `distribute`.

    It shares param_groups and state with the optimizer it wraps, so that learning-rate schedulers and state_dict see one
    optimizer. Use it as a context manager, or call `close`: the other ranks are served until all have closed.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module,
        driver: RankDriver,
        engine: Engine | None,
        recorder: Recorder | None,
        resident: ResidentModel | None = None,
    ) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer = optimizer
        self.recorder = recorder
        self._model = model
        self._trained = _trained(model)
        self._driver = driver
        self._engine = engine
        self._resident = resident
        self._share()

    @property
    def iteration(self) -> int:
        """The iteration that the next `step` ends, from 0."""
        return self._driver.iteration

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """The gradient is there: update, and join the collectives of this iteration. Returns what `closure` returned.

        Raises CollectiveTimeout if a wait reaches its limit, PeerFailed if another rank failed (and again at each later
        call), InputError if a parameter was frozen or unfrozen since `distribute`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._advance(skip=False)
        return loss

    def skip(self) -> None:
        """In place of `step`: no update in this iteration (a loss scaler found an overflow, say), but join the others.

        A rank that left out a step would be an iteration behind the others from then on. Raises as `step` does.
        """
        self._advance(skip=True)

    def _advance(self, skip: bool) -> None:
        if self._trained != _trained(self._model):
            raise InputError("model: its trained parameters have changed since distribute; freeze or unfreeze before it")
        self._driver.advance(skip)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the wrapped optimizer does it."""
        self.optimizer.zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the wrapped optimizer, which this one shares its state with."""
        self.optimizer.load_state_dict(state_dict)
        self._share()

    def close(self) -> None:
        """This rank has no further iteration: serve the others until all have closed. Safe to call twice.

        Raises CollectiveTimeout if nothing happens any more before all ranks have closed.
        """
        if self._engine is not None:
            self._engine.close()
        if self._resident is not None:
            self._resident.detach()
            self._resident = None

    def notes(self) -> Notes:
        """What this rank recorded, after `close`; for `wagma.real.recorder.assemble`."""
        assert self.recorder is not None, "distribute(..., record=True) records"
        return self.recorder.notes(None if self._engine is None else self._engine.take_records())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if is_orderly(error):
            self.close()
        elif self._engine is not None:
            self._engine.abort(f"{type(error).__name__}: {error}")

    def _share(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state


def distribute(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    algorithm: str = "wagma_sgd",
    group_size: int | str = "sqrt",
    sync_period: int | str = 10,
    *,
    comm: Any = None,
    merge_once: bool = False,
    resident: bool = False,
    transport: Transport = "auto",
    timeout_s: float = 300.0,
    watchdog_s: float = 60.0,
    record: bool = False,
) -> DistributedOptimizer:
    """Wrap `optimizer` so that its steps train `model` together with the other ranks of `comm` (default: COMM_WORLD).

    All ranks must call it, with models of the same shape; they start from rank 0's parameters and buffers. Trained parameters travel as
    one flat buffer of the model's dtype (float32 or float64) and stay where they are. group_size is "sqrt" or 1..P, sync_period "never"
    or 1 and more; `timeout_s` limits every wait; after `watchdog_s` without anything that moves each rank says what stands (0: never;
    SIGUSR1: at any time). `record` keeps what a trace needs, digests included. `resident`: the parameters' data moves into the library's
    buffers, and to another of them in each step, so that publishing and averaging copy nothing (`wagma.real.resident` says what does not
    go with that). transport: "shm", "mpi", or "auto", shared memory if all ranks are on one machine.

    Raises InputError for bad settings or models that differ, on every rank and naming the one at fault; MissingDependencyError
    without mpi4py, MPI or the native kernel; CollectiveTimeout if a rank does not come.
    """
    comm = world() if comm is None else comm

    def prepare() -> tuple[Specification, Schedule, FlatView, FlatView]:
        _check_pair(optimizer, model)
        require(comm, transport, watchdog_s)
        spec = require_real(specification(algorithm))
        size, period = resolve_group_size(group_size, comm.size, "group_size"), resolve_sync_period(sync_period)
        views = flat_views(model)
        if resident:
            require_models(spec)
            check_resident(views[0])
        return spec, spec.schedule(comm.size, size, period), *views

    def describe() -> str:
        spec, schedule, flat, _ = prepare()
        layout = f"{flat.size} parameters of {flat.dtype} (layout {_layout(model):08x})"
        return f"{layout}, {spec.name}, {schedule}, merge_once = {merge_once}, resident = {resident}, transport = {transport}"

    agree(comm, describe, timeout_s)
    spec, schedule, model_flat, gradient_flat = prepare()
    _start_alike(comm, model, timeout_s)
    initial = model_flat.read()
    engine = None
    if spec.collectives is not Collectives.NONE:
        engine = Engine(
            comm, schedule, initial, merge_once=merge_once, resident=resident, mean_when_fresh=spec.by_merge_rule,
            transport=transport, timeout_s=timeout_s, watchdog_s=watchdog_s, record=record, digests=record,
        )  # fmt: skip
    placed = resident_model(model_flat, engine) if resident else None
    recorder = Recorder(comm.rank, initial) if record else None
    flats = {Value.MODEL: model_flat, Value.GRADIENT: gradient_flat}
    driver = RankDriver(spec, comm.rank, schedule, engine, flats, optimizer.step, recorder, placed)
    return DistributedOptimizer(optimizer, model, driver, engine, recorder, placed)


def _check_pair(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Raise InputError unless the optimizer is one that can be distributed, and trains the model."""
    if isinstance(optimizer, DistributedOptimizer):
        raise InputError("optimizer: it is distributed already; wrap each optimizer once")
    given: tuple[object, object] = optimizer, model
    if not isinstance(given[0], torch.optim.Optimizer) or not isinstance(given[1], torch.nn.Module):
        names = " and ".join(type(one).__name__ for one in given)
        raise InputError(f"distribute was given {names}: must be a torch.optim.Optimizer and a torch.nn.Module")
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not updated <= {id(p) for p in model.parameters()}:
        raise InputError("optimizer: it updates parameters that are not the model's; give both of the same model")
    if signature(optimizer.step).parameters["closure"].default is Parameter.empty:
        raise InputError(f"optimizer: {type(optimizer).__name__} evaluates a closure several times in a step: not supported")


def _layout(model: torch.nn.Module) -> int:
    """A number that differs where names or shapes do."""
    return zlib.crc32(repr([(name, tuple(value.shape)) for name, value in model.state_dict().items()]).encode())


def _start_alike(comm: Any, model: torch.nn.Module, timeout_s: float) -> None:
    """Everything that a model's output depends on, frozen parameters and buffers included, becomes rank 0's."""
    for tensor in [*model.parameters(), *model.buffers()]:
        content = tensor.detach().cpu().contiguous().clone()
        # As bytes: buffers may be integers, and numpy does not know every dtype of torch.
        raw = content.reshape(-1).view(torch.uint8).numpy()
        if raw.size:
            broadcast(comm, raw, timeout_s, "distribute the model")
            with torch.no_grad():
                tensor.copy_(content)


def _trained(model: torch.nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]
