"""Runs an algorithm's generators, one SimPy process per rank, in virtual time.

The trampoline is `Rank.run`: it knows how each effect happens here and how long it takes, and sends its outcome back. It knows
no algorithm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import simpy

from wagma.algorithms import Collectives, Specification, specification
from wagma.core.effects import (
    Allreduce,
    ApplyUpdate,
    Average,
    AwaitAveraging,
    AwaitIteration,
    Barrier,
    ComputeGradient,
    Effect,
    Exchange,
    ExchangeOutcome,
    GroupAllreduce,
    GroupOutcome,
    PairAverage,
    RankView,
    Recover,
    Scale,
    Value,
)
from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.errors import WagmaError
from wagma.scenario import Scenario, as_table
from wagma.sim.collective import Collective, Joined
from wagma.sim.gossip import Gossip, Received
from wagma.sim.memory import seldom_collecting
from wagma.sim.network import LogGP
from wagma.sim.numerics import Numerics
from wagma.timing.imbalance import Times
from wagma.trace import Header, Iteration, RankStart, Trace

Progress = Callable[[int, int], None]
Observe = Callable[[int, int], None]


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
        self._gathered: Joined | Received | None = None  # what Average works on
        self._over = False
        self._computed_until = 0  # the end of the compute under way, of which communication may overlap the last part
        self._updated = False  # whether the model has the gradient of this iteration in it
        self._exchanged = NONE  # the last iteration in which it exchanged
        #: Whether others average with its model, as it stands.
        self._paired = run.specification.companion is not None or run.specification.collectives is Collectives.PAIRS
        #: Effects that take no time, hence need no generator of their own.
        self._instant: dict[type, Callable[[Any], None]] = {
            ApplyUpdate: self._update,
            Average: self._average,
            Recover: self._recover,
            Scale: self._scale,
        }

    @property
    def other(self) -> RankView:
        """What its second activity sees of it."""
        return self

    def process(self) -> Generator[simpy.Event, Any, None]:
        """The SimPy process of the rank's first activity: one effect after the other, then close."""
        algorithm = self._run.specification.run(self)
        outcome: Any = None
        while True:
            try:
                effect = algorithm.send(outcome)
            except StopIteration:
                break
            instant = self._instant.get(type(effect))
            if instant is not None:
                outcome = instant(effect)
            else:
                outcome = yield from self._perform(effect)
        yield from self._finish_compute()
        self._finish_iteration()
        self._over = True
        self._run.gossip.end(self.rank)
        self._run.collective.close(self.rank, self._run.numerics.publish(self.rank, Value.MODEL))

    def companion(self) -> Generator[simpy.Event, Any, None]:
        """The SimPy process of its second activity, if it has one: it ends with the first, after the effect under way."""
        second = self._run.specification.companion
        assert second is not None
        for effect in second(self.other):
            match effect:
                case AwaitIteration():
                    yield self._run.gossip.await_iteration(self.rank, effect.iteration)
                case PairAverage():
                    yield self._run.gossip.average_pair(self.rank, effect)
                case _:
                    raise WagmaError(f"rank {self.rank}: {effect!r} is nothing for a second activity")
            if self.is_over():
                return
        self._run.gossip.averaged(self.rank)

    def is_over(self) -> bool:
        """Whether the first activity has ended, as far as the second one knows."""
        return self._over

    def _perform(self, effect: Effect) -> Generator[simpy.Event, Any, Any]:
        """Make the effect happen, however long that takes; its outcome."""
        run = self._run
        match effect:
            case ComputeGradient():
                if self._computed_until > run.env.now:
                    yield from self._finish_compute()
                self._finish_iteration()
                began = int(run.env.now)
                if run.gate is not None and (opened := run.gate(self.rank, effect.iteration)) is not None:
                    yield opened
                yield self._compute(effect.iteration, int(run.env.now) - began)
            case Allreduce():
                joined = yield from self._join(effect)
                run.numerics.replace(self.rank, effect.value, joined.result)
                run.collective.merged(self.rank)
            case GroupAllreduce():
                self._gathered = joined = yield from self._join(effect)
                return GroupOutcome(int(joined.fresh), joined.group_length)
            case Exchange():
                self._gathered = received = yield from self._exchange(effect)
                return ExchangeOutcome(received.mass)
            case PairAverage():
                yield run.gossip.average_pair(self.rank, effect)
                self._returned()
            case AwaitAveraging():
                yield run.gossip.await_averaging(self.rank, effect.iteration)
                self._returned()
            case Barrier():
                # Nobody begins the next iteration before everybody's compute has ended, whatever overlaps with it.
                self._computed_until = yield run.gossip.barrier(self.rank, effect.iteration, self._computed_until)
                self._returned()
            case _:
                raise WagmaError(f"rank {self.rank}: {effect!r} is no effect that the simulator knows")
        return None

    def _compute(self, iteration: int, held: int) -> simpy.Event:
        """The gradient and the delays; what the rank was `held` before counts as delay."""
        run = self._run
        run.gossip.begin(self.rank, iteration)
        computed = int(run.times.compute_ns(iteration)[self.rank])
        delayed = int(run.times.delay_ns(iteration)[self.rank]) if run.specification.delayed else 0
        end = int(run.env.now) + computed + delayed
        self._record = Iteration(
            self.rank, NONE, iteration, end, end, None, None, computed_ns=computed, delayed_ns=held + delayed
        )  # fmt: skip
        self._record.work = run.numerics.compute_gradient(self.rank, iteration)
        # A partner averages with the model as it stands, so that a pair may not begin before the model does stand.
        early = 0 if self._paired else round(run.scenario.network.overlap * computed)
        self._computed_until, self._updated = end, False
        self._record.arrival_ns = end - early
        return run.env.timeout(computed + delayed - early)

    def _finish_compute(self) -> Generator[simpy.Event, Any, None]:
        """Communication that began before the end of the compute does not end the iteration before that."""
        left = self._computed_until - int(self._run.env.now)
        if left > 0:
            yield self._run.env.timeout(left)
            self._returned()

    def _join(self, effect: Allreduce | GroupAllreduce) -> Generator[simpy.Event, Any, Joined]:
        run, record = self._run, self._record
        assert record is not None
        contribution = run.numerics.publish(self.rank, effect.value)
        record.arrival_ns = int(run.env.now)
        record.published_digest = run.numerics.digest(contribution)
        joined: Joined = yield run.collective.arrive(self.rank, effect.iteration, contribution, self._computed_until)
        record.return_ns = int(run.env.now)
        record.fresh = joined.fresh
        if joined.merged_version != NONE:
            record.merged_version = joined.merged_version
            record.merged_digest = run.numerics.digest(joined.result)
        return joined

    def _exchange(self, effect: Exchange) -> Generator[simpy.Event, Any, Received]:
        run, record = self._run, self._record
        assert record is not None
        if effect.iteration <= self._exchanged:
            raise run.specification.exchanged_twice(effect.iteration)
        self._exchanged = effect.iteration
        contribution = run.numerics.publish(self.rank, effect.value)
        record.published_digest = run.numerics.digest(contribution)
        # A model that has no update yet is the one from before the compute, whole from the start.
        whole_ns = self._computed_until if self._updated or effect.value is Value.GRADIENT else 0
        received: Received = yield run.gossip.exchange(self.rank, effect, contribution, whole_ns)
        self._returned()
        return received

    def _returned(self) -> None:
        """The rank goes on: the time since its arrival was spent waiting for others."""
        if self._record is not None:
            self._record.return_ns = int(self._run.env.now)

    def _update(self, effect: ApplyUpdate) -> None:
        self._updated = True
        self._run.numerics.apply_update(self.rank, effect.iteration)
        if self._paired and self._record is not None:
            self._record.updated_sequence = self._member.next_sequence()

    def _recover(self, effect: Recover) -> None:
        run = self._run
        for taken in run.collective.retract(self.rank):
            run.numerics.add(self.rank, effect.value, taken)
            if self._record is not None:
                self._record.retracted_ns = int(run.env.now)

    def _scale(self, effect: Scale) -> None:
        self._run.numerics.scale(self.rank, effect.factor)

    def _average(self, effect: Average) -> None:
        gathered = self._gathered
        assert gathered is not None
        total = gathered.total if isinstance(gathered, Received) else gathered.result
        self._run.numerics.average(self.rank, total, effect.own_weight, effect.divisor, effect.value)
        if isinstance(gathered, Joined) and gathered.merged_version != NONE:
            self._run.collective.merged(self.rank)

    def _finish_iteration(self) -> None:
        """The iteration ends where the next one begins: what follows a collective (an update) still belongs to it."""
        record, run = self._record, self._run
        if record is None:
            return
        record.sequence = self._member.next_sequence()
        record.model_digest = run.numerics.digest(run.numerics.publish(self.rank, Value.MODEL))
        run.finished(record)
        self._record = None


class Run:
    """One simulation: environment, collective, ranks and their records."""

    def __init__(
        self, scenario: Scenario, algorithm: str, numerics: Numerics, progress: Progress | None, observe: Observe | None = None
    ) -> None:
        self.scenario = scenario
        self.specification: Specification = specification(algorithm)
        self.numerics = numerics
        self.env = simpy.Environment(0)
        self.collective = self.make_collective()
        self.gossip = self.make_gossip()
        self.times = Times(scenario.ranks, scenario.seed, scenario.compute, scenario.imbalance, scenario.noise)
        self.iterations: list[Iteration] = []
        #: Asked before each iteration, gate(rank, iteration): an event to wait for, or None (`wagma.sim.cluster`).
        self.gate: Callable[[int, int], simpy.Event | None] | None = None
        self._began = time.perf_counter()
        self._initial: list[Any] = []
        self._progress = progress
        self._observe = observe

    def make_collective(self) -> Collective:
        """All ranks' machines, and the network between them."""
        scenario, name = self.scenario, self.specification.name
        merge_once = scenario.settings_of(name).merge_once
        return Collective(self.env, scenario.schedule(name), scenario.network, scenario.model_bytes, self.numerics, merge_once)

    def make_gossip(self) -> Gossip:
        """What ranks exchange without a collective."""
        scenario, network = self.scenario, self.collective.network
        if scenario.network.letters is not None:  # another way, with interfaces of its own
            network = LogGP(self.env, scenario.ranks, scenario.network.of_letters())
        return Gossip(self.env, network, scenario.ranks, scenario.model_bytes, self.numerics, self.next_sequence)

    def make_rank(self, rank: int) -> Rank:
        """What drives a rank's generators."""
        return Rank(rank, self)

    def next_sequence(self, rank: int) -> int:
        """The next place in the causal order of a rank's records."""
        return self.collective.members[rank].next_sequence()

    def finished(self, record: Iteration) -> None:
        """Keep a finished iteration."""
        self.iterations.append(record)
        if self._progress is not None:
            self._progress(len(self.iterations), self.scenario.ranks * self.scenario.iterations)
        if self._observe is not None:
            self._observe(int(self.env.now), len(self.iterations))

    def execute(self) -> Trace:
        """Run to the end and drain. Raises WagmaError, naming ranks and versions, if the ranks wait for each other forever."""
        self.begin()
        with seldom_collecting():
            self.env.run()
        return self.end()

    def begin(self) -> None:
        """Create the ranks; from now on the environment may run."""
        self._initial = [self.numerics.publish(rank, Value.MODEL) for rank in range(self.scenario.ranks)]
        for rank, model in enumerate(self._initial):
            if self.specification.value is Value.MODEL:  # a gradient that nobody has published yet is zeros
                self.collective.initialize(rank, model)
            view = self.make_rank(rank)
            self.env.process(view.process())
            if self.specification.companion is not None:
                self.env.process(view.companion())

    def end(self) -> Trace:
        """The record of the run, once its environment has no events left. Raises WagmaError if ranks are not done."""
        self.gossip.check_done()
        self.collective.check_done()
        header = Header(
            "sim", "simpy", self.specification.name, self.specification.value, "virtual", self.numerics.kind,
            as_table(self.scenario),
        )  # fmt: skip
        digest, publish = self.numerics.digest, self.numerics.publish
        starts = [
            RankStart(rank, 0, "", digest(model), digest(publish(rank, Value.MODEL)))
            for rank, model in enumerate(self._initial)
        ]
        name = f"sim/{self.scenario.name}/{self.specification.name}/{self.scenario.ranks}"
        trace = Trace(header, starts, self.collective.executions, self.iterations, name, exchanges=self.gossip.exchanges)
        trace.sort()
        trace.wall_s = time.perf_counter() - self._began
        return trace


def simulate(
    scenario: Scenario, algorithm: str, numerics: Numerics, progress: Progress | None = None, observe: Observe | None = None
) -> Trace:
    """Simulate `algorithm` on `scenario`; the trace's records are complete, its digests are those of `numerics`.

    progress(done, total) is called after each iteration of each rank; so is observe(virtual time in ns, iterations done by
    all ranks), which may look at `numerics` but not change it. Raises InputError for bad settings.
    """
    return Run(scenario, algorithm, numerics, progress, observe).execute()
