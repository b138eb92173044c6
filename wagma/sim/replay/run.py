"""Leads all ranks through a recording.

Any order of all ranks' steps that keeps each rank's own and lets causes come before effects gives the same bits, and the run itself
went through such an order. So one rank after the other goes as far as it can: if all stand still before the end, the recording is not true.
Why a true one never stands still: of the steps that wait take the one that happened first. All that it needed of others had happened before
it, and so has been done here, too. Only which of several activations of a version came first is not on record. It need not be: each that
has come is fed at that time, so that a rank has passed on here at least what it had passed on there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import simpy

from wagma.core.digest import digest
from wagma.core.effects import Value
from wagma.errors import InputError, ProtocolError
from wagma.scenario import require_changing_groups
from wagma.sim.collective import Collective
from wagma.sim.driver import Progress, Run
from wagma.sim.gossip import Gossip
from wagma.sim.memory import seldom_collecting
from wagma.sim.replay.compare import (
    OF_ITERATION,
    Comparison,
    Difference,
    Recorded,
    check_starts,
    exchange_key,
    named,
    take_times,
)
from wagma.sim.replay.script import Kind, Step, scripts
from wagma.sim.replay.world import ReplayedCollective, ReplayedGossip, ReplayedRank, Skipping
from wagma.trace import Iteration, RankStart, Trace
from wagma.workloads import REGISTRY, consolidated, replicas, require, score_of

_GOSSIPS = (Kind.BEGUN, Kind.SENT, Kind.SERVED, Kind.AVERAGED)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A replay that found no difference. trace: what was recomputed, with the recorded times. compared: digests, by rank."""

    trace: Trace
    compared: list[int]
    weights: list[str]

    @property
    def digest(self) -> str:
        """Of the last weights of all ranks: of their digests, in the order of ranks."""
        return digest(np.array([int(one, 16) for one in self.weights], np.uint64))


def replay(trace: Trace, progress: Progress | None = None) -> Replayed:
    """Run the ranks of a recorded real run once more, in the order that the recording says the world decided on.

    progress(done, total) is called after each iteration of each rank. Raises Difference at the first thing that is not as it was recorded;
    InputError if the recording does not have what it takes, MissingDependencyError if something that the workload needs is not installed.
    """
    check(trace)
    run = Replay(trace, progress)
    with seldom_collecting():
        run.lead()
    return run.result()


def check(trace: Trace) -> None:
    """Raise InputError unless the recording has what a replay needs, MissingDependencyError unless this machine has."""
    where, header = trace.source, trace.header
    scenario = trace.scenario
    if header.world != "real":
        raise InputError(f'{where}: world = "{header.world}": must be "real"; a simulation is simulated again instead')
    if scenario.training.workload == "none":
        raise InputError(
            f'{where}: training.workload = "none": must be one of {", ".join(REGISTRY)}, or there is no training to run again'
        )
    if header.digests != "content":
        raise InputError(f'{where}: digests = "{header.digests}": must be "content", or there is nothing to compare with')
    if header.begin:
        raise InputError(
            f"{where}: begin = {header.begin}: must be 0; the models that the run went on from are in a checkpoint, not in the trace"
        )
    check_starts(trace)
    for start in trace.starts:
        if start.final_digest is None:  # or nothing says that the recording goes on to the end
            raise InputError(
                f"{where}: rank {start.rank}: final_digest = null: an older wagma did not record it; record the run again"
            )
    require_changing_groups(scenario, header.algorithm)
    require(scenario.training.workload)


class Replay(Run):
    """The simulator's run, with recorded ranks, collective and exchanges."""

    numerics: Skipping

    def __init__(self, trace: Trace, progress: Progress | None) -> None:
        scenario = trace.scenario
        self.recorded, self.comparison = Recorded(trace), Comparison()
        self.skipped = {(a.rank, a.iteration) for a in trace.iterations if a.skipped}
        self._trace = trace
        self._scripts: list[Any] = []
        self._views: dict[int, ReplayedRank] = {}
        self._holds: dict[tuple[Kind, int, int], simpy.Event] = {}
        self._wanted = {one.iteration for one in trace.evaluations}
        self._snapshots: dict[int, dict[int, Any]] = {number: {} for number in self._wanted}  # by iterations done, by rank
        self._total = len(trace.iterations)
        self._replicas = replicas(scenario)
        super().__init__(scenario, trace.header.algorithm, Skipping(self._replicas, self.skipped), progress)

    def make_collective(self) -> Collective:
        """Decision machines that are fed as recorded."""
        name = self.specification.name
        self._scripts = scripts(self._trace, self.specification)
        merge_once = self.scenario.settings_of(name).merge_once
        return ReplayedCollective(
            self.env, self.scenario.schedule(name), self.scenario.model_bytes, self.numerics, merge_once, self._scripts, self.recorded,
            self.comparison,
        )  # fmt: skip

    def make_gossip(self) -> Gossip:
        """Pairs that average as recorded."""
        paired = any(step.kind is Kind.BEGUN for script in self._scripts for step in script)
        return ReplayedGossip(self, self.collective.network, paired)

    def make_rank(self, rank: int) -> ReplayedRank:
        """A rank that is held where the recording has something to say."""
        view = self._views[rank] = ReplayedRank(rank, self, sum(one == rank for one, _ in self.recorded.iterations))
        return view

    def hold(self, kind: Kind, rank: int, iteration: int) -> simpy.Event:
        """An event for when the recording lets the rank go on."""
        event = self._holds[kind, rank, iteration] = self.env.event()
        return event

    def finished(self, record: Iteration) -> None:
        """An iteration has ended: is it as recorded?"""
        recorded = self.recorded.iteration(record)
        taken, now_taken = recorded.retracted_ns is not None, record.retracted_ns is not None
        if taken != now_taken:
            raise Difference(
                f"{named(record)}: retracted_ns: recorded {recorded.retracted_ns or 'null'}, recomputed {'a time' if now_taken else 'null'}"
            )
        left_out = "work" if record.skipped and recorded.work is None else None  # whoever has closed computes no gradient
        self.comparison.check(recorded, record, (name for name in OF_ITERATION if name != left_out))
        take_times(recorded, record)
        if record.iteration + 1 in self._wanted:
            self._snapshots[record.iteration + 1][record.rank] = self.numerics.publish(record.rank, Value.MODEL)
        self.iterations.append(record)
        if self._progress is not None:
            self._progress(len(self.iterations), self._total)

    # -- leading -----------------------------------------------------------------------------------------------------------

    def lead(self) -> None:
        """Every rank goes on as far as it can, one after the other, until all are at the end of what is recorded."""
        self.begin()
        self._check_beginnings()
        self._settle()
        moved = True
        while moved:
            moved = False
            for script in self._scripts:
                while script and self._may(script[0]):
                    self._perform(script.popleft())
                    self._settle()
                    moved = True
        left = [script[0] for script in self._scripts if script]
        if left:
            step = min(left, key=lambda step: step.at_ns)
            raise Difference(f"{step}: expected later, or not at all: what it needs never happens in this order")
        self._check_ends()

    def _check_beginnings(self) -> None:
        self.comparison.value(None, "value", self._trace.header.value, self.specification.value)
        for start, model in zip(sorted(self._trace.starts, key=lambda start: start.rank), self._initial, strict=True):
            self.comparison.value(start.rank, "initial_digest", start.initial_digest, self.numerics.digest(model))
        if 0 in self._wanted:
            self._snapshots[0] = dict(enumerate(self._initial))

    def _settle(self) -> None:
        """Until every rank waits for the recording."""
        while self.env.peek() != float("inf"):
            self.env.step()

    def _may(self, step: Step) -> bool:
        if step.kind in (Kind.COMPUTED, Kind.ENDED):
            return (step.kind, step.rank, step.number) in self._holds
        world = self.gossip if step.kind in _GOSSIPS else self.collective
        assert isinstance(world, ReplayedCollective | ReplayedGossip)
        return world.may(step)

    def _perform(self, step: Step) -> None:
        if step.kind in (Kind.COMPUTED, Kind.ENDED):
            self._holds.pop((step.kind, step.rank, step.number)).succeed()
            return
        if step.kind is Kind.ARRIVED:
            own, recorded = self._views[step.rank].published, self.recorded.iterations[step.rank, step.number].published_digest
            if own != recorded:  # before anybody adds it up
                raise Difference(f"{named(step.record)}: published_digest: recorded {recorded}, recomputed {own}")
        world = self.gossip if step.kind in _GOSSIPS else self.collective
        assert isinstance(world, ReplayedCollective | ReplayedGossip)
        try:
            world.perform(step)
        except ProtocolError as error:
            raise Difference(f"{step}: {error}") from error

    # -- the end -----------------------------------------------------------------------------------------------------------

    def _check_ends(self) -> None:
        """Nothing is left over: neither of the replay, nor of the recording. What neighbours exchange is in no script."""
        made = {exchange_key(x) for x in self.gossip.exchanges}
        for key, x in self.recorded.exchanges.items():
            if key not in made:
                raise Difference(f"{named(x)}: recorded, and the replay has no such exchange")
        self.gossip.check_done()
        self.collective.check_done()

    def result(self) -> Replayed:
        """What was recomputed, once weights and scores are seen to be those on record."""
        models = [self.numerics.publish(rank, Value.MODEL) for rank in range(self.scenario.ranks)]
        weights = [digest(model) for model in models]
        starts = []
        for start, own in zip(sorted(self._trace.starts, key=lambda start: start.rank), weights, strict=True):
            self.comparison.value(start.rank, "final_digest", start.final_digest, own)
            starts.append(RankStart(start.rank, start.started_ns, start.host, start.initial_digest, own, start.environment))
        self._check_scores(models)
        header = self._trace.header
        again = Trace(
            replace(header, engine="replay"), starts, self.collective.executions, self.iterations, self._trace.source,
            exchanges=self.gossip.exchanges, evaluations=list(self._trace.evaluations),
        )  # fmt: skip
        again.sort()
        return Replayed(again, [self.comparison.digests.get(rank, 0) for rank in range(self.scenario.ranks)], weights)

    def _check_scores(self, models: list[Any]) -> None:
        """What the models reach, as far as it was recorded. Replaces the replicas' own models."""
        header, name, ranks = self._trace.header, self.specification.name, self._replicas
        if header.own_score is None:
            if self._trace.evaluations or (header.score, header.score_name, header.score_direction) != (None, None, None):
                raise Difference("own_score: recorded null, beside other scores: whoever judges gives all of them")
            return
        kind = score_of(self.scenario)
        self.comparison.value(None, "score_name", header.score_name, kind.name)
        self.comparison.value(None, "score_direction", header.score_direction, kind.direction)
        own = sum(replica.evaluate() for replica in ranks) / len(ranks)
        self.comparison.value(None, "own_score", header.own_score, own)

        def score(some: list[Any]) -> float | None:
            common = consolidated(name, some)
            return None if common is None else ranks[0].evaluate(common)

        self.comparison.value(None, "score", header.score, score(models))
        for one in self._trace.evaluations:
            taken = self._snapshots[one.iteration]
            some = [taken.get(rank, models[rank]) for rank in range(len(ranks))]
            if one.iteration == max(self._wanted):
                some = models
            self.comparison.value(None, f"score after {one.iteration} iterations", one.score, score(some))
