"""Drives an algorithm's generator once for all ranks: the trampoline of the fast engine.

It knows the effects that take time; those that only compute with models (ApplyUpdate, Average, Scale, Recover) take none and have no
contents here. Algorithms do not branch on outcomes, so what they yield does not depend on them either.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal, NoReturn, overload

import numpy as np

from wagma.algorithms import Collectives, specification
from wagma.columns import Columns, Totals
from wagma.core.effects import (
    Allreduce,
    ApplyUpdate,
    Average,
    Barrier,
    ComputeGradient,
    Effect,
    Exchange,
    ExchangeOutcome,
    GroupAllreduce,
    Recover,
    Scale,
    Value,
)
from wagma.core.groups import ceil_log
from wagma.core.protocol import NONE
from wagma.scenario import Scenario
from wagma.sim.fast.applications import Applications
from wagma.sim.fast.arrays import Times, Unfit
from wagma.sim.fast.clock import Clock
from wagma.sim.fast.gossip import Neighbours
from wagma.sim.fast.ledger import Ledger
from wagma.sim.fast.versions import Versions
from wagma.timing.network import Network

Progress = Callable[[int, int], None]

#: What this engine models of [network]; anything else must be at its default, which is off.
MODELLED = {
    "latency_ns", "overhead_ns", "gap_ns", "gap_per_byte_ns", "activation_ns", "group_allreduce", "allreduce", "overlap",
    "reduce_ns_per_byte",
}  # fmt: skip
#: What ranks do with models: it takes no time, and there are no contents.
TIMELESS = (ApplyUpdate, Average, Recover, Scale)
#: What they do with each other.
JOINT = (Allreduce, GroupAllreduce, Exchange, Barrier)


def unfit(scenario: Scenario, algorithm: str) -> str | None:
    """Why the fast engine cannot run this, as the end of a sentence; None: nothing is known that stands against it."""
    chosen = specification(algorithm)
    if chosen.companion is not None or chosen.collectives is Collectives.PAIRS:
        return "it averages in pairs, which nothing keeps in step"
    if scenario.training.workload != "none":
        return f'its ranks train (training.workload = "{scenario.training.workload}")'
    for field in dataclasses.fields(Network):
        value = getattr(scenario.network, field.name)
        if field.name not in MODELLED and value != field.default:
            return f"network.{field.name} is none of its timing model"
    return None


class World:
    """The view that an algorithm has of all ranks at once."""

    def __init__(self, scenario: Scenario, algorithm: str) -> None:
        self.rank = np.arange(scenario.ranks)
        self.iterations = range(scenario.iterations)
        self.schedule = scenario.schedule(algorithm)
        self.settings = scenario.algorithm_settings(algorithm)


class Run:
    """One simulation."""

    def __init__(self, scenario: Scenario, algorithm: str, columns: bool, progress: Progress | None) -> None:
        self.world = World(scenario, algorithm)
        schedule, network, size = self.world.schedule, scenario.network, scenario.model_bytes
        self._chosen = specification(algorithm)
        self._scenario = scenario
        self._progress = progress
        self._grouped = schedule.grouped
        merge_once = scenario.settings_of(algorithm).merge_once
        depth = min(scenario.iterations, schedule.sync_period or scenario.iterations) if self._grouped else 0
        self.ledger = Ledger(scenario, algorithm, self._grouped, columns)
        self._applications = Applications(
            scenario.ranks, scenario.iterations, depth, merge_once, scenario.network.overlap > 0, self.ledger
        )
        self._versions = Versions(schedule, network, size, self._applications, self.ledger)
        self._neighbours = Neighbours(self._versions.groups.interfaces, size)
        self._barrier_ns = ceil_log(scenario.ranks, 2) * round(network.activation_ns or 0)
        communicates = self._chosen.collectives is not Collectives.NONE
        self._clock = Clock(scenario, self._chosen.delayed, communicates, self._versions.longest_ns(), self.ledger.computed)
        self._iteration = NONE  # the one that is being driven
        self._joined = False
        self._updated = False  # whether the models have the gradients of this iteration in them
        self._exchanged = NONE  # the last iteration with an exchange
        self._open: Times | None = None  # arrivals of an iteration whose end is not recorded yet

    def execute(self) -> None:
        """Run to the end. Raises Unfit, and InputError for an algorithm that no engine runs."""
        algorithm = self._chosen.run(self.world)
        outcome: Any = None
        while True:
            try:
                effect = algorithm.send(outcome)
            except StopIteration:
                break
            except (TypeError, ValueError, AttributeError) as error:
                raise Unfit(f"it cannot be driven with an array of ranks: {error}") from error
            outcome = self._perform(effect)
        if self._grouped and not self._joined:
            raise Unfit(f"it does not join its last version, that of iteration {self._iteration}")
        self._close_iteration()
        if self._iteration + 1 != self._scenario.iterations:
            raise Unfit(f"it ends after {self._iteration + 1} of {self._scenario.iterations} iterations")
        self._versions.finish(self._scenario.iterations)

    def _perform(self, effect: Effect) -> Any:
        """Make the effect happen at all ranks; its outcome."""
        if isinstance(effect, TIMELESS):
            self._updated |= isinstance(effect, ApplyUpdate)
            return None
        if isinstance(effect, ComputeGradient):
            return self._compute(effect.iteration)
        if not isinstance(effect, JOINT) or effect.iteration != self._iteration or self._joined:
            self._refuse(effect)
        match effect:
            case Allreduce() | GroupAllreduce():
                # Without group collectives all ranks have returned when the version is complete.
                outcome = self._versions.join(effect.iteration)
                self._joined = True
                self._open = None
                return outcome if isinstance(effect, GroupAllreduce) else None
            case Exchange() if not self._grouped:
                return self._exchange(effect)
            case Barrier() if not self._grouped:
                self._clock.lengthen(self._barrier_ns)
                return self._applications.wait_for_all(self._barrier_ns)
        return self._refuse(effect)

    def _exchange(self, effect: Exchange) -> ExchangeOutcome:
        if self._exchanged == self._iteration:
            raise self._chosen.exchanged_twice(self._iteration)
        self._exchanged = self._iteration
        self._clock.lengthen(self._neighbours.longest_ns(effect))
        applications = self._applications
        # A model that has no update yet is the one from before the compute, whole from the start.
        whole = applications.whole if self._updated or effect.value is Value.GRADIENT else applications.arrival
        applications.arrival = self._neighbours.exchange(applications.arrival, whole, effect)
        self.ledger.exchanged(len(effect.sources) * self._scenario.ranks)
        return ExchangeOutcome(self._neighbours.mass(effect))

    def _compute(self, iteration: int) -> None:
        self._close_iteration()
        if iteration != self._iteration + 1 or (self._grouped and iteration and not self._joined):
            self._refuse(ComputeGradient(iteration))
        self._iteration, self._joined, self._updated = iteration, False, False
        self._applications.compute(iteration, *self._clock.durations(iteration))
        if not self._grouped:
            self._open = self._applications.arrival
        if self._progress is not None:
            ranks = self._scenario.ranks
            self._progress(ranks * (iteration + 1), ranks * self._scenario.iterations)

    def _close_iteration(self) -> None:
        """Record an iteration that had no collective."""
        if self._open is not None:
            self._applications.finish_compute()
            self.ledger.row(self._iteration, self._open, self._applications.arrival, None, NONE, None, sync=False)
            self._open = None

    def _refuse(self, effect: Effect) -> NoReturn:
        raise Unfit(f"it yields {type(effect).__name__} in iteration {self._iteration}, where this engine does not expect it")


@overload
def simulate(
    scenario: Scenario, algorithm: str, progress: Progress | None = None, columns: Literal[False] = False
) -> Totals: ...


@overload
def simulate(scenario: Scenario, algorithm: str, progress: Progress | None = None, *, columns: Literal[True]) -> Columns: ...


def simulate(scenario: Scenario, algorithm: str, progress: Progress | None = None, columns: bool = False) -> Totals | Columns:
    """Simulate `algorithm` on `scenario`. columns: everything, not only what the figures need.

    Raises Unfit where it would not agree with the SimPy engine; InputError for bad settings.
    """
    if (reason := unfit(scenario, algorithm)) is not None:
        raise Unfit(reason)
    began = time.perf_counter()
    run = Run(scenario, algorithm, columns, progress)
    run.execute()
    wall_s = time.perf_counter() - began
    return run.ledger.columns(wall_s) if columns else run.ledger.totals(wall_s)
