"""The entrance for PyTorch users: an optimizer whose step also joins the algorithm's collectives.

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = wagma.distribute(optimizer, model, algorithm="wagma_sgd", group_size="sqrt", sync_period=10)

Nothing else in the loop changes: zero_grad, backward, step.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, overload

import torch

from wagma.algorithms import Collectives, Specification, specification
from wagma.core.effects import Value
from wagma.core.schedule import Schedule
from wagma.errors import InputError
from wagma.real.driver import RankDriver
from wagma.real.kernel import Engine, agree, world
from wagma.real.recorder import Notes, Recorder
from wagma.scenario import resolve_group_size, resolve_sync_period
from wagma.workloads.flat import FlatView, flat_views


class DistributedOptimizer(torch.optim.Optimizer):
    """A torch optimizer and its rank's side of an algorithm; made by `distribute`.

    It shares param_groups and state with the optimizer it wraps, so that learning-rate schedulers and state_dict see one
    optimizer. Use it as a context manager, or call `close`: the other ranks are served until all have closed.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, driver: RankDriver, engine: Engine | None, recorder: Recorder | None
    ) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer = optimizer
        self.recorder = recorder
        self._driver = driver
        self._engine = engine
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

        Raises CollectiveTimeout if a wait reaches its limit, PeerFailed if another rank failed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._driver.advance()
        return loss

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

    def notes(self) -> Notes:
        """What this rank recorded, after `close`; for `wagma.real.recorder.assemble`."""
        assert self.recorder is not None, "distribute(..., record=True) records"
        return self.recorder.notes(None if self._engine is None else self._engine.take_records())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
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
    timeout_s: float = 300.0,
    record: bool = False,
) -> DistributedOptimizer:
    """Wrap `optimizer` so that its steps train `model` together with the other ranks of `comm` (default: COMM_WORLD).

    All ranks must call it, with models of the same shape; they start from rank 0's parameters. Parameters travel as one flat
    buffer of the model's dtype (float32 or float64) and stay where they are. group_size is "sqrt" or 1..P, sync_period "never" or
    1 and more; `timeout_s` limits every wait. `record` keeps what a trace needs, digests included. Raises InputError for bad
    settings or models that differ, MissingDependencyError without mpi4py, MPI or the native kernel.
    """
    comm = world() if comm is None else comm

    def prepare() -> tuple[Specification, Schedule, FlatView, FlatView]:
        if isinstance(optimizer, DistributedOptimizer):
            raise InputError("optimizer: it is distributed already; wrap each optimizer once")
        spec = specification(algorithm)
        size, period = resolve_group_size(group_size, comm.size, "group_size"), resolve_sync_period(sync_period)
        return spec, spec.schedule(comm.size, size, period), *flat_views(model)

    def describe() -> str:
        spec, schedule, flat, _ = prepare()
        return f"{flat.size} parameters of {flat.dtype}, {spec.name}, {schedule}, merge_once = {merge_once}"

    agree(comm, describe, timeout_s)
    spec, schedule, model_flat, gradient_flat = prepare()
    initial = model_flat.read()
    comm.Bcast(initial, 0)
    model_flat.write(initial)
    engine = None
    if spec.collectives is not Collectives.NONE:
        engine = Engine(comm, schedule, initial, merge_once=merge_once, timeout_s=timeout_s, record=record, digests=record)
    recorder = Recorder(comm.rank, initial) if record else None
    flats = {Value.MODEL: model_flat, Value.GRADIENT: gradient_flat}
    driver = RankDriver(spec, schedule, engine, flats, optimizer.step, recorder)
    return DistributedOptimizer(optimizer, driver, engine, recorder)
