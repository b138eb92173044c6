"""Puts together one rank's side of an algorithm, once `wagma.real.wrapper.distribute` has checked what it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from wagma.algorithms import Collectives, Specification, specification
from wagma.core.effects import Value
from wagma.core.schedule import NEVER, Schedule
from wagma.core.settings import AlgorithmSettings
from wagma.errors import InputError
from wagma.real.algorithms import gossips, has_collectives
from wagma.real.carriers import Carrier
from wagma.real.checkpoints.parts import Agreed
from wagma.real.connect import not_resident
from wagma.real.devices.carrier import DeviceCarrier
from wagma.real.devices.place import Place
from wagma.real.driver import RankDriver
from wagma.real.exits import is_orderly
from wagma.real.gossip.exchange import gossip_of
from wagma.real.gossip.shared import Flat, StandIn
from wagma.real.kernel import Engine
from wagma.real.node import HOST_TRANSPORT, ON_DEVICE, Transport
from wagma.real.seeing.monitor import Monitor, Seeing
from wagma.real.wrapper.consolidated import consolidated, last_sync_of
from wagma.real.wrapper.extras import SYNCING, Extras, FloatBuffers, Policies
from wagma.real.wrapper.intact import Intact
from wagma.real.wrapper.mean import Meetings
from wagma.real.wrapper.optimizer import Parts
from wagma.real.wrapper.resident import resident_model
from wagma.workloads.flat import FlatView


@dataclass(frozen=True, slots=True)
class Options:
    """Of `distribute`, which says what they mean: those that are no matter of the algorithm."""

    merge_once: bool
    resident: bool
    check_finite: bool
    transport: Transport
    device: str | None
    timeout_s: float
    watchdog_s: float
    seeing: Seeing

    def describe(self) -> str:
        """What all ranks need alike."""
        return (
            f"merge_once = {self.merge_once}, resident = {self.resident}, check_finite = {self.check_finite}, "
            f"transport = {self.transport}, {self.seeing.describe()}"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What the settings mean on this rank, once they are checked."""

    spec: Specification
    schedule: Schedule
    settings: AlgorithmSettings
    model: FlatView
    gradient: FlatView
    place: Place  # of the parameters
    policies: Policies

    def describe(self, options: Options) -> dict[str, Any]:
        """What the bits of a run depend on, beside its algorithm and the number of ranks."""
        schedule = self.schedule
        return {
            "group_size": schedule.group_size, "sync_period": self.policies.sync_period or schedule.sync_period,
            "initiators": schedule.initiators, "seed": schedule.seed,
            "merge_once": options.merge_once, "optimizer_state": self.policies.state, "buffers": self.policies.buffers,
        }  # fmt: skip


def build(
    comm: Any,
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    plan: Plan,
    options: Options,
    release: Callable[[], None],
) -> Parts:
    """Collective: engines, letters, driver, eyes. All ranks' models are alike by now. Raises CollectiveTimeout."""
    initial = plan.model.read()
    seeing = options.seeing
    # A rank alone: no group, no mean, nothing to copy. Where records are kept it runs like several, for the sake of the trace: with its
    # model if that is digested, else with a number in its place, which records cannot tell from a model.
    alone = comm.size == 1 and plan.spec.plain_alone and not seeing.digests
    spec = specification("ideal") if alone and not seeing.keeps else plan.spec
    flats: Mapping[Value, Flat] = {Value.MODEL: plan.model, Value.GRADIENT: plan.gradient}
    if alone:
        _check_alone(plan.place, options)
        options = replace(options, transport="auto")  # of the number, if any: nothing of the model travels
    if alone and seeing.keeps:
        flats, options = dict.fromkeys(Value, StandIn(plan.model.dtype)), replace(options, resident=False)
    # Before the engine: what is left open is closed in this order at exit, which is that of `Parts.close`.
    gossip = gossip_of(comm, initial.dtype, options.timeout_s, options.watchdog_s) if gossips(spec) else None
    # Whatever gossips computes with arrays in host memory: on all ranks.
    place = None if alone or gossip is not None else plan.place
    engine = _engine(comm, spec, plan, options, flats[Value.MODEL], place) if has_collectives(spec) else None
    buffers = FloatBuffers(model)
    meetings = _meetings(comm, plan, buffers, options) if spec.collectives is not Collectives.NONE and comm.size > 1 else None
    recorder = seeing.recorder(comm.rank, initial)
    intact = Intact(model, comm.rank)
    driver = RankDriver(
        spec, comm.rank, plan.schedule, engine, flats,
        _Update(optimizer, intact if options.check_finite else None), recorder, _carrier(plan, options, engine, place),
        settings=plan.settings, gossip=gossip, where=plan.place,
    )  # fmt: skip
    if engine is not None and plan.schedule.accumulate:
        engine.last_model = driver.carrier.last
    monitor = Monitor(
        comm, seeing, plan.spec, plan.schedule, engine, recorder, plan.model.size, plan.model.kernel_dtype, options.timeout_s
    )

    def consolidate(closed: bool) -> AbstractContextManager[None]:
        return _consolidate(comm, plan, buffers, options, meetings, driver.iteration, closed)

    extras = Extras(optimizer, plan.model.parameters, buffers, plan.policies, meetings)
    return Parts(
        driver,
        spec.value,
        intact,
        extras,
        engine,
        gossip,
        meetings,
        monitor,
        options.check_finite,
        consolidate,
        release,
        Agreed(comm, options.timeout_s, model, plan.spec.name, plan.describe(options)),
    )


def _check_alone(place: Place, options: Options) -> None:
    """Raise InputError, as several ranks would, if buffers are to be on a device and the model is not, or the other way round."""
    transport = options.transport
    if transport in ON_DEVICE and not place.on_device:
        why = f"rank 0: {place}: {place.why_not}" if place.why_not else "rank 0's model is in host memory"
        raise InputError(f"transport = {transport!r}: {why}: must be 'auto', 'shm' or 'mpi'")
    if options.resident and place.on_device and transport not in ("auto", *ON_DEVICE):
        raise not_resident(f"transport = {transport!r}")


def _carrier(plan: Plan, options: Options, engine: Engine | None, place: Place | None) -> Carrier | None:
    """None: by way of host memory."""
    if options.resident and engine is not None:
        return resident_model(plan.model, engine, plan.place)
    return DeviceCarrier(plan.model, plan.gradient, place) if place is not None and place.on_device else None


def _engine(comm: Any, spec: Specification, plan: Plan, options: Options, model: Flat, place: Place | None) -> Engine:
    # A late rank that has published no gradient yet contributes zeros.
    first = model.read() if spec.value is Value.MODEL else np.zeros(model.size, model.dtype)
    engine = Engine(
        comm, plan.schedule, first, dtype=plan.model.kernel_dtype, merge_once=options.merge_once, resident=options.resident,
        mean_when_fresh=spec.by_merge_rule, transport=options.transport, place=place, timeout_s=options.timeout_s,
        watchdog_s=options.watchdog_s, record=options.seeing.records, digests=options.seeing.digests,
    )  # fmt: skip
    if isinstance(model, StandIn):
        engine.transport = ""
    return engine


class _Update:
    """The local update. Looked up anew each time: a scheduler that is made later replaces the optimizer's `step`."""

    def __init__(self, optimizer: torch.optim.Optimizer, finite: Intact | None) -> None:
        self._optimizer = optimizer
        self._finite = finite

    def __call__(self) -> None:
        self._optimizer.step()
        if self._finite is not None:
            self._finite.check_finite()


def _meetings(comm: Any, plan: Plan, buffers: FloatBuffers, options: Options) -> Meetings:
    """For the means of all ranks that are not those of an iteration: through host memory, wherever the model is."""
    return Meetings(
        comm, plan.model.size + buffers.numbers, transport=HOST_TRANSPORT[options.transport], timeout_s=options.timeout_s
    )


@contextmanager
def _consolidate(
    comm: Any,
    plan: Plan,
    buffers: FloatBuffers,
    options: Options,
    meetings: Meetings | None,
    iteration: int,
    closed: bool,
) -> Iterator[None]:
    if plan.spec.collectives is Collectives.NONE and comm.size > 1:
        raise InputError(f"consolidated(): the ranks of {plan.spec.name} never communicate, and have no model in common")
    # After the end: who returned from close knows that all ranks have closed, so all of them can make a new one.
    own = _meetings(comm, plan, buffers, options) if closed and comm.size > 1 else None
    period = plan.schedule.sync_period if plan.spec.collectives in SYNCING else NEVER
    try:
        with consolidated(plan.model.parameters, buffers, own or meetings, iteration, last_sync_of(period)):
            yield
    except BaseException as error:
        if own is not None and not is_orderly(error):
            own.abort(f"{type(error).__name__}: {error}")
        raise
    if own is not None:
        own.close()
