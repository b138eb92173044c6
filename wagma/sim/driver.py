"""Runs an algorithm's generators, one SimPy process per rank, in virtual time.

The trampoline is `Rank.run`: it knows how each effect happens here and how long it takes, and sends its outcome back. It knows
no algorithm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import simpy

from wagma.algorithms import Specification, specification
from wagma.core.effects import Allreduce, ApplyUpdate, Average, ComputeGradient, GroupAllreduce, GroupOutcome, Value
from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.errors import WagmaError
from wagma.imbalance import Times
from wagma.scenario import Scenario, as_table
from wagma.sim.collective import Collective, Joined
from wagma.sim.numerics import Numerics
from wagma.trace import Header, Iteration, RankStart, Trace

Progress = Callable[[int, int], None]


class Rank:
    """One simulated rank: the view that its algorithm has of it, and the trampoline that drives it."""

    def __init__(self, rank: int, run: Run) -> None:
        self.rank = rank
        self.iterations = range(run.scenario.iterations)
        self.schedule: Schedule = run.collective.schedule
        self.settings = run.scenario.algorithm_settings(run.specification.name)
        self._run = run
        self._member = run.collective.members[rank]
        self._record: Iteration | None = None
        self._joined: Joined | None = None

    def process(self) -> Generator[simpy.Event, Any, None]:
        """The SimPy process: one effect after the other, then close."""
        algorithm = self._run.specification.run(self)
        outcome: Any = None
        while True:
            try:
                effect = algorithm.send(outcome)
            except StopIteration:
                break
            outcome = None
            match effect:
                case ComputeGradient():
                    yield self._compute(effect.iteration)
                case ApplyUpdate():
                    self._run.numerics.apply_update(self.rank, effect.iteration)
                case Allreduce():
                    joined = yield from self._join(effect)
                    self._run.numerics.replace(self.rank, effect.value, joined.result)
                    self._run.collective.merged(self.rank)
                case GroupAllreduce():
                    self._joined = yield from self._join(effect)
                    outcome = GroupOutcome(int(self._joined.fresh), self._joined.group_length)
                case Average():
                    self._average(effect)
                case _:
                    raise WagmaError(f"rank {self.rank}: {effect!r} is no effect that the simulator knows")
        self._finish_iteration()
        self._run.collective.close(self.rank)

    def _compute(self, iteration: int) -> simpy.Event:
        self._finish_iteration()
        run = self._run
        computed = int(run.times.compute_ns(iteration)[self.rank])
        delayed = int(run.times.delay_ns(iteration)[self.rank]) if run.specification.delayed else 0
        end = int(run.env.now) + computed + delayed
        self._record = Iteration(self.rank, NONE, iteration, end, end, None, None, computed_ns=computed, delayed_ns=delayed)
        run.numerics.compute_gradient(self.rank, iteration)
        return run.env.timeout(computed + delayed)

    def _join(self, effect: Allreduce | GroupAllreduce) -> Generator[simpy.Event, Any, Joined]:
        run, record = self._run, self._record
        assert record is not None
        contribution = run.numerics.publish(self.rank, effect.value)
        record.arrival_ns = int(run.env.now)
        record.published_digest = run.numerics.digest(contribution)
        joined: Joined = yield run.collective.arrive(self.rank, effect.iteration, contribution)
        record.return_ns = int(run.env.now)
        record.fresh = joined.fresh
        if joined.merged_version != NONE:
            record.merged_version = joined.merged_version
            record.merged_digest = run.numerics.digest(joined.result)
        return joined

    def _average(self, effect: Average) -> None:
        assert self._joined is not None
        self._run.numerics.average(self.rank, self._joined.result, effect.own_weight, effect.divisor)
        if self._joined.merged_version != NONE:
            self._run.collective.merged(self.rank)

    def _finish_iteration(self) -> None:
        """The iteration ends where the next one begins: what follows a collective (an update) still belongs to it."""
        record, run = self._record, self._run
        if record is None:
            return
        record.sequence = self._member.next_sequence()
        record.model_digest = run.numerics.digest(run.numerics.publish(self.rank, Value.MODEL))
        run.finished(record)


class Run:
    """One simulation: environment, collective, ranks and their records."""

    def __init__(self, scenario: Scenario, algorithm: str, numerics: Numerics, progress: Progress | None) -> None:
        self.scenario = scenario
        self.specification: Specification = specification(algorithm)
        self.numerics = numerics
        self.env = simpy.Environment(0)
        merge_once = scenario.settings_of(algorithm).merge_once
        self.collective = Collective(
            self.env, scenario.schedule(algorithm), scenario.network, scenario.model_bytes, numerics, merge_once
        )
        self.times = Times(scenario.ranks, scenario.seed, scenario.compute, scenario.imbalance)
        self.iterations: list[Iteration] = []
        self._progress = progress

    def finished(self, record: Iteration) -> None:
        """Keep a finished iteration."""
        self.iterations.append(record)
        if self._progress is not None:
            self._progress(len(self.iterations), self.scenario.ranks * self.scenario.iterations)

    def execute(self) -> Trace:
        """Run to the end and drain. Raises WagmaError, naming ranks and versions, if the ranks wait for each other forever."""
        began = time.perf_counter()
        initial = [self.numerics.publish(rank, Value.MODEL) for rank in range(self.scenario.ranks)]
        for rank, model in enumerate(initial):
            self.collective.initialize(rank, model)
            self.env.process(Rank(rank, self).process())
        self.env.run()
        self.collective.check_done()
        header = Header(
            "sim", "simpy", self.specification.name, self.specification.value, "virtual", self.numerics.kind,
            as_table(self.scenario),
        )  # fmt: skip
        starts = [RankStart(rank, 0, "", self.numerics.digest(model)) for rank, model in enumerate(initial)]
        name = f"sim/{self.scenario.name}/{self.specification.name}/{self.scenario.ranks}"
        trace = Trace(header, starts, self.collective.executions, self.iterations, name)
        trace.sort()
        trace.wall_s = time.perf_counter() - began
        return trace


def simulate(scenario: Scenario, algorithm: str, numerics: Numerics, progress: Progress | None = None) -> Trace:
    """Simulate `algorithm` on `scenario`; the trace's records are complete, its digests are those of `numerics`.

    progress(done, total) is called after each iteration of each rank. Raises InputError for bad settings.
    """
    return Run(scenario, algorithm, numerics, progress).execute()
