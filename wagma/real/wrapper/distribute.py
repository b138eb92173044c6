"""The entrance for PyTorch users: an optimizer whose step also joins the algorithm's collectives.

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = wagma.distribute(optimizer, model, algorithm="wagma_sgd", group_size="sqrt", sync_period=10)

Nothing else in the loop changes: zero_grad, backward, step.

Options of `distribute`. Trained parameters travel as one flat buffer (`wagma.workloads.flat.FlatView` says of which dtype) and stay where
they are; resident=True moves their data into the library's buffers, to another of them in each step, so that publishing and averaging copy
nothing (`wagma.real.wrapper.resident`). transport: "shm", "mpi", or "auto", shared memory if all ranks are on one machine;
without a collective ranks write to each other over MPI, whatever it is. timeout_s limits every wait; after watchdog_s
without anything that moves each rank says what stands (0: never; SIGUSR1: at any time). settings: what only this algorithm has,
such as {"out_neighbours": 2} of sgp (docs/algorithms.md); seed: of partners and initiators; merge_once: merge no sum twice.

Parameters on a GPU are read and written there (docs/devices.md). transport may then be "ipc" or "cuda-mpi", too, with buffers on the device
as well; "auto" is the first of "ipc", "cuda-mpi", "shm" and "mpi" that all ranks can have. device: None, where the parameters are;
"emulated" takes those in host memory for an emulated device's, and does without a GPU what is done with one.

At syncs (allreduce_sgd: in every sync_period-th iteration), optimizer_state is "local", kept as it is, "average" or "reset"; buffers
(BatchNorm statistics) are "local", "average" or "broadcast", of the first rank that has not closed. None: the default ("local",
"average"; docs/training.md says why), "local" where there are no syncs. check_finite: refuse to average NaN or infinity into the other
ranks' models.

What rank 0 shows (docs/seeing.md): progress=True writes a line about the run every report_every seconds to standard error, and a
summary at the end; a function is called with that line instead. tensorboard is a folder for scalars, trace a file for the trace. record
keeps records in memory: "times" at a cost of microseconds, True with digests of all models, which cost as much as reading them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal

import torch

from wagma.algorithms import specification
from wagma.errors import InputError
from wagma.real.algorithms import check_transport_of, gossips, require_models
from wagma.real.devices.model import place_of
from wagma.real.devices.place import check_device
from wagma.real.launching.threads import share_cores
from wagma.real.limited import agree
from wagma.real.modules import require, require_letters, world
from wagma.real.node import Transport
from wagma.real.seeing.monitor import Record, Seeing
from wagma.real.wrapper.alike import agree_on_model, check_whole, start_alike
from wagma.real.wrapper.build import Options, Plan, build
from wagma.real.wrapper.extras import BufferPolicy, StatePolicy, policies
from wagma.real.wrapper.optimizer import DistributedOptimizer
from wagma.real.wrapper.resident import check_resident
from wagma.scenario import read_settings, resolve_group_size, resolve_initiators, resolve_sync_period
from wagma.workloads.flat import flat_views, plain

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Choice:
    """What `distribute` was asked for of the algorithm."""

    algorithm: str
    group_size: int | str
    sync_period: int | str
    settings: Mapping[str, Any]
    seed: int
    optimizer_state: StatePolicy | None
    buffers: BufferPolicy | None

    def plan(self, comm: Any, model: torch.nn.Module, options: Options) -> Plan:
        """What that means on this rank. Raises InputError, naming what is allowed; MissingDependencyError."""
        require(comm, options.transport, options.watchdog_s)
        spec = specification(self.algorithm)
        check_transport_of(spec, options.transport)
        if gossips(spec):
            require_letters(comm)
        own = read_settings(self.settings, self.algorithm, comm.size, "settings")
        size, period = resolve_group_size(self.group_size, comm.size, "group_size"), resolve_sync_period(self.sync_period)
        # Whatever computes with the array itself needs numbers that numpy knows.
        views = flat_views(model, halves=not gossips(spec), who=f"rank {comm.rank}: ")
        place = place_of(views[0], options.device, comm.rank)
        if options.resident:
            require_models(spec)
            check_resident(views[0], model, place)
        schedule = spec.schedule(comm.size, size, period, resolve_initiators(own.initiators, comm.size), self.seed)
        chosen = policies(spec, period, self.optimizer_state, self.buffers)
        return Plan(spec, schedule, own.of_algorithm(self.seed), *views, place, chosen)


def distribute(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    algorithm: str = "wagma_sgd",
    group_size: int | str = "sqrt",
    sync_period: int | str = 10,
    *,
    comm: Any = None,
    optimizer_state: StatePolicy | None = None,
    buffers: BufferPolicy | None = None,
    check_finite: bool = False,
    merge_once: bool = False,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    resident: bool = False,
    transport: Transport = "auto",
    device: Literal["emulated"] | None = None,
    timeout_s: float = 300.0,
    watchdog_s: float = 60.0,
    progress: bool | Callable[[str], None] = False,
    report_every: float = 10.0,
    tensorboard: str | Path | None = None,
    trace: str | Path | None = None,
    record: Record = False,
) -> DistributedOptimizer:
    """Wrap `optimizer` so that its steps train `model` together with the other ranks of `comm` (default: COMM_WORLD).

    All ranks call it, with models of the same shape, and start from rank 0's parameters and buffers. group_size: "sqrt" or 1..P;
    sync_period: "never" or 1 and more. What the other options mean is said at the top of `wagma.real.wrapper.distribute` and in
    docs/training.md.

    Raises InputError for bad settings, ModelMismatch for models that differ, on every rank and naming the one at fault;
    MissingDependencyError without mpi4py, MPI or the native kernel; CollectiveTimeout if a rank does not come.
    """
    comm = world() if comm is None else comm
    choice = _Choice(algorithm, group_size, sync_period, {} if settings is None else settings, seed, optimizer_state, buffers)
    seeing = Seeing(progress, report_every, tensorboard, trace, record)
    options = Options(merge_once, resident, check_finite, transport, device, timeout_s, watchdog_s, seeing)

    def describe() -> str:
        _check_pair(optimizer, model)
        _check_types(choice, options)
        seeing.check(comm.rank)
        plan, name = choice.plan(comm, model, options), type(optimizer).__name__
        own = f"settings = {choice.settings}, seed = {seed}"
        return f"{plan.spec.name}, {plan.schedule}, {plan.policies}, {name}, {own}, {options.describe()}"

    agree(comm, describe, timeout_s)
    agree_on_model(comm, model, timeout_s)
    share_cores(comm, timeout_s)
    start_alike(comm, model, timeout_s)
    plan = choice.plan(comm, model, options)
    parts = build(comm, optimizer, model, plan, options, _release(optimizer, model))
    distributed = DistributedOptimizer(optimizer, parts)
    _remember(optimizer, model, distributed)
    if not record:  # else the run begins when its clock does
        parts.monitor.recorder.restart_clock()
    return distributed


# Protects _distributed: run_local's ranks are threads, and two that looked and wrote at once could lose one's entry.
_lock = threading.Lock()
#: Models and optimizers that are distributed now. Weak on both sides: what nobody has any more can be wrapped no second time.
_distributed: weakref.WeakKeyDictionary[Any, weakref.ref[DistributedOptimizer]] = weakref.WeakKeyDictionary()


def _remember(optimizer: torch.optim.Optimizer, model: torch.nn.Module, distributed: DistributedOptimizer) -> None:
    with _lock:
        for one in (optimizer, _uncompiled(model)):
            _distributed[one] = weakref.ref(distributed)


def _release(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> Callable[[], None]:
    def release() -> None:
        with _lock:
            for one in (optimizer, _uncompiled(model)):
                _distributed.pop(one, None)

    return release


def _is_distributed(one: object) -> bool:
    with _lock:
        found = _distributed.get(one)
    return found is not None and found() is not None


def _check_untrained(model: torch.nn.Module) -> None:
    """Raise InputError, naming the parameter, if another distributed optimizer trains a part of the model: each would undo the other."""
    with _lock:
        others = [other for found in _distributed.values() if (other := found()) is not None]
    trained = {one for other in others for one in other.trained}  # ids: of tensors that those optimizers keep alive
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) in trained:
            raise InputError(f"model: its parameter {plain(name)!r} is distributed already, with another model and optimizer")


def _uncompiled(model: torch.nn.Module) -> torch.nn.Module:
    """torch.compile puts a module of its own around the model."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, torch.nn.Module) else model


def _check_types(choice: _Choice, options: Options) -> None:
    """Raise InputError for values of a kind that nobody below looks at."""
    given: Any = choice.settings
    if not isinstance(given, Mapping):
        raise InputError(f"settings = {given!r}: must be a dict")
    given = choice.seed
    if type(given) is not int or not 0 <= given <= LARGEST_SEED:
        raise InputError(f"seed = {given!r}: must be a whole number, at least 0 and at most {LARGEST_SEED}")
    check_device(options.device)
    for name in ("check_finite", "merge_once", "resident"):
        given = getattr(options, name)
        if not isinstance(given, bool):
            raise InputError(f"{name} = {given!r}: must be True or False")


def _check_pair(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Raise InputError unless the optimizer is one that can be distributed, and trains the model."""
    given: tuple[object, object] = optimizer, model
    if not isinstance(given[0], torch.optim.Optimizer) or not isinstance(given[1], torch.nn.Module):
        names = " and ".join(type(one).__name__ for one in given)
        raise InputError(f"distribute was given {names}: must be a torch.optim.Optimizer and a torch.nn.Module")
    if isinstance(optimizer, DistributedOptimizer) or _is_distributed(optimizer):
        raise InputError("optimizer: it is distributed already; wrap each optimizer once")
    if _is_distributed(_uncompiled(model)):
        raise InputError("model: it is distributed already, with another optimizer; give one optimizer all of its parameters")
    _check_untrained(model)
    check_whole(model)
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not updated <= {id(p) for p in model.parameters()}:
        raise InputError("optimizer: it updates parameters that are not the model's; give both of the same model")
    closure = signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        raise InputError(f"optimizer: {type(optimizer).__name__} evaluates a closure several times in a step: not supported")
