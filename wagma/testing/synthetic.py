"""Arbitrary legal runs of the decision machines, without network, clock or any engine of wagma's.

Activations overtake each other, ranks are late by many versions, unused buffers are scribbled over.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from wagma.algorithms import Collectives, specification
from wagma.core.averaging import add, merge, merge_rule, with_zeros
from wagma.core.digest import digest
from wagma.core.groups import Group
from wagma.core.protocol import NONE, Complete, Forward, Machine, Output, Retracted, Solo, Start, dimensions
from wagma.core.schedule import NEVER, Schedule
from wagma.core.symbols import NULL
from wagma.core.trees import Array, tree_sum
from wagma.errors import InputError
from wagma.scenario import as_table, read
from wagma.trace import Execution, Header, Iteration, RankStart, Trace

PARAMETERS = 5
LONGEST_HOP_NS = 6  # of an activation, an execution once all have started, a read
PACES_NS = (2, 12, 90)  # slowest compute time of a rank: ranks differ by more than a sync period
STALL_PROBABILITY = 0.1
STALL_FACTOR = 10


def synthetic_trace(
    ranks: int,
    group_size: int,
    sync_period: int,
    iterations: int,
    seed: int,
    merge_once: bool = False,
    close_early: bool = False,
    compute_ns: Sequence[Sequence[int]] | None = None,
    algorithm: str = "wagma_sgd",
    initiators: int | str = "solo",
) -> Trace:
    """The trace of one arbitrary legal run of an algorithm that averages models, or of eager_sgd, chosen by `seed`.

    sync_period 0 is never. close_early: each rank closes after a number of iterations of its own. compute_ns[rank][iteration]
    replaces the random compute times, which stall now and then. initiators: of eager_sgd. Raises InputError for settings out of range,
    and AssertionError if ranks are stuck or an activation strands.
    """
    table = {
        "name": "synthetic",
        "ranks": ranks,
        "iterations": iterations,
        "seed": seed,
        "model": {"parameters": PARAMETERS},
        "work": {"per_rank": 1, "unit": "steps"},
        "compute": {"kind": "constant", "seconds": 1e-9},
        "algorithm": {
            "group_size": group_size,
            "sync_period": "never" if sync_period == NEVER else sync_period,
            "merge_once": merge_once,
        },
        "algorithms": {"eager_sgd": {"initiators": initiators}},
    }
    kind = specification(algorithm).collectives
    if kind in (Collectives.NEIGHBOURS, Collectives.PAIRS):
        raise InputError(
            f"algorithm = {algorithm!r}: it has no decision machine to drive; allowed: those with collectives, or none"
        )
    scenario = read(table, "synthetic")
    value = "gradient" if algorithm == "eager_sgd" else "model"
    header = Header("sim", "synthetic", algorithm, value, "adversarial", "content", as_table(scenario))
    trace = Trace(header, source=f"synthetic {ranks}/{group_size}/{sync_period} seed {seed}")
    _World(trace, merge_once, close_early, compute_ns).run()
    trace.sort()
    return trace


@dataclass(slots=True)
class _Meeting:
    """The members of one group in one version.

    direct: each member adds up the others' buffers by itself, and a contribution counts as read after the last of them. Else
    the sum is there once, when it is first needed, and contributions may be read before or after any member is done.
    """

    group: Group
    direct: bool
    started: dict[int, tuple[Start, Execution]] = field(default_factory=dict)  # by rank
    executed: int = 0
    total: Array | None = None


class _Rank:
    """One rank: its machine and buffers, its application's model, and the records being made."""

    def __init__(self, rank: int, schedule: Schedule, merge_once: bool, model: Array, iterations: int) -> None:
        self.rank = rank
        self.machine = Machine(rank, schedule, merge_once)
        self.buffers = [np.full(PARAMETERS, np.nan, np.float32) for _ in range(self.machine.buffers)]
        if self.machine.published != NONE:
            self.buffers[self.machine.published][:] = model
        self.model = model
        self.gradient = model  # where gradients accumulate: the newest, with those taken back
        self.left = iterations
        self.iteration = 0
        self.arrival_ns = 0
        self.published_digest = ""
        self.activated_ns: dict[int, int] = {}
        self.own_activation = NONE
        self.start: Start
        self.record: Execution  # of the execution under way
        self.sequence = 0
        self.retracted_ns: int | None = None

    def next_sequence(self) -> int:
        """The causal order of this rank's records."""
        self.sequence += 1
        return self.sequence - 1


class _World:
    """All ranks and what is under way between them, as events in integer time; those of one instant come in any order."""

    def __init__(self, trace: Trace, merge_once: bool, close_early: bool, compute_ns: Sequence[Sequence[int]] | None) -> None:
        scenario = trace.scenario
        self.trace = trace
        self.schedule = trace.schedule
        self.random = random.Random(scenario.seed)
        self.now = 0
        self.events: list[tuple[int, float, int, Callable[[], None]]] = []
        self.pushed = 0
        self.meetings: dict[tuple[int, Group], _Meeting] = {}
        self.paces = [self.random.choice(PACES_NS) for _ in range(scenario.ranks)]
        self.compute_ns = compute_ns
        self.first_activated_ns: dict[int, int] = {}
        #: An activation is that fast, whoever is late: promise 7 needs it, and traces with unknown networks cannot show it.
        self.longest_ns = dimensions(scenario.ranks) * LONGEST_HOP_NS
        self.communicates = specification(trace.header.algorithm).collectives is not Collectives.NONE
        initial = self._draw()
        self.ranks = []
        for rank in range(scenario.ranks):
            iterations = self.random.randint(0, scenario.iterations) if close_early else scenario.iterations
            self.ranks.append(_Rank(rank, self.schedule, merge_once, initial, iterations))
            trace.starts.append(RankStart(rank, 0, "", digest(initial)))

    def run(self) -> None:
        """Until nothing is under way any more."""
        for rank in self.ranks:
            self._compute(rank)
        while self.events:
            self.now, _, _, action = heapq.heappop(self.events)
            action()
        stuck = [rank.rank for rank in self.ranks if not rank.machine.done]
        assert not stuck, f"{self.trace.source}: stuck at {self.now} ns, ranks {stuck} are not done"

    def _later(self, delay_ns: int, action: Callable[[], None]) -> None:
        self.pushed += 1  # events are never compared by their actions
        heapq.heappush(self.events, (self.now + delay_ns, self.random.random(), self.pushed, action))

    def _hop(self, action: Callable[[], None]) -> None:
        self._later(self.random.randint(0, LONGEST_HOP_NS), action)

    def _draw(self) -> Array:
        return np.array([self.random.gauss(0, 1) for _ in range(PARAMETERS)], np.float32)

    # -- the application -----------------------------------------------------------------------------------------------

    def _compute(self, rank: _Rank) -> None:
        if not rank.left:
            if self.schedule.accumulate:
                if rank.machine.live == NONE:  # peers still read
                    self._later(1, partial(self._compute, rank))
                    return
                rank.buffers[rank.machine.live][:] = rank.model
            self._apply(rank, rank.machine.close)
            if all(other.machine.closed for other in self.ranks):
                last = max(other.machine.arrived for other in self.ranks)
                for other in self.ranks:
                    self._hop(partial(self._apply, other, other.machine.finish, last))
            return
        rank.left -= 1
        if rank.machine.live != NONE:
            rank.buffers[rank.machine.live][:] = np.nan  # half a model, until it is published
        if self.compute_ns is not None:
            delay = self.compute_ns[rank.rank][rank.iteration]
        else:
            stalls = self.random.random() < STALL_PROBABILITY
            delay = self.random.randint(0, self.paces[rank.rank]) * (STALL_FACTOR if stalls else 1)
        self._later(delay, partial(self._retract if self.schedule.accumulate else self._publish, rank))

    def _retract(self, rank: _Rank) -> None:
        """Take back what no version has taken; others may be faster than the arrival that follows."""
        rank.gradient, rank.retracted_ns = self._draw(), None
        for output in rank.machine.retract():
            if isinstance(output, Retracted):
                rank.gradient, rank.retracted_ns = add(rank.buffers[output.buffer], rank.gradient), self.now
                rank.machine.merge_done()
        self._hop(partial(self._publish, rank))

    def _publish(self, rank: _Rank) -> None:
        joins = self.communicates and self.schedule.next(rank.iteration - 1) == rank.iteration
        if joins and rank.machine.live == NONE:  # peers still read what it published before
            self._later(1, partial(self._publish, rank))
            return
        gradient = self.schedule.accumulate and not self.schedule.is_sync(rank.iteration)
        if not gradient:
            rank.model = rank.model + (rank.gradient if self.schedule.accumulate else self._draw())
        published = rank.gradient if gradient else rank.model
        rank.arrival_ns = self.now
        rank.published_digest = digest(published)
        if not joins:
            record = self._record(rank, None, None)
            record.model_digest = rank.published_digest
            self._next(rank)
            return
        rank.buffers[rank.machine.live][:] = published
        self._apply(rank, rank.machine.arrive, rank.iteration)

    def _record(self, rank: _Rank, fresh: bool | None, merged_version: int | None) -> Iteration:
        record = Iteration(
            rank.rank, rank.next_sequence(), rank.iteration, rank.arrival_ns, self.now, fresh, merged_version,
            published_digest=rank.published_digest, retracted_ns=rank.retracted_ns,
        )  # fmt: skip
        self.trace.iterations.append(record)
        return record

    def _merge(self, rank: _Rank, complete: Complete, record: Iteration) -> None:
        if complete.merged_version != NONE:
            total = rank.buffers[complete.buffer]
            record.merged_digest = digest(total)
            length = len(self.schedule.group(rank.rank, complete.merged_version))
            if self.schedule.is_sync(complete.merged_version):
                rank.model = total.copy()
            elif self.schedule.accumulate:
                rank.model = rank.model + merge(total, rank.model, 0, length)
            else:
                rank.model = merge(total, rank.model, *merge_rule(int(complete.fresh), length))
            self._apply(rank, rank.machine.merge_done)
        record.model_digest = digest(rank.model)
        self._next(rank)

    def _next(self, rank: _Rank) -> None:
        rank.iteration += 1
        self._compute(rank)

    # -- the machines and their outputs --------------------------------------------------------------------------------

    def _apply(self, rank: _Rank, event: Callable[..., list[Output]], *arguments: Any) -> None:
        """Feed one event to a machine, note what it activated, carry its outputs out."""
        version = self.schedule.next(rank.machine.activated)
        outputs = event(*arguments)
        if version <= rank.machine.activated and event in (rank.machine.arrive, rank.machine.solo):
            rank.own_activation = rank.machine.activated
        while version <= rank.machine.activated:
            rank.activated_ns[version] = self.now
            waited = self.now - self.first_activated_ns.setdefault(version, self.now)
            assert waited <= self.longest_ns, f"rank {rank.rank}, version {version}: stranded, activated after {waited} ns"
            version = self.schedule.next(version)
        for output in outputs:
            match output:
                case Forward():
                    to = self.ranks[output.rank]
                    self._hop(partial(self._apply, to, to.machine.activation, output.version, output.dimension))
                case Solo():
                    to = self.ranks[output.rank]
                    self._hop(partial(self._apply, to, to.machine.solo, output.version, output.dimension))
                case Start():
                    self._start(rank, output)
                case Complete():
                    nothing = output.merged_version == NONE
                    record = self._record(rank, output.fresh, None if nothing else output.merged_version)
                    self._hop(partial(self._merge, rank, output, record))

    def _start(self, rank: _Rank, start: Start) -> None:
        group = self.schedule.group(rank.rank, start.version)
        rank.start = start
        rank.record = Execution(
            rank.rank, NONE, start.version, list(group), rank.own_activation == start.version,
            rank.activated_ns.pop(start.version), self.now, NONE, start.stamp,
            oldest_stamp=start.oldest if self.schedule.accumulate else None,
        )  # fmt: skip
        rank.buffers[start.target][:] = np.nan
        meeting = self.meetings.setdefault((start.version, group), _Meeting(group, self.random.random() < 0.5))
        meeting.started[rank.rank] = (start, rank.record)
        if len(meeting.started) == len(group):
            del self.meetings[start.version, group]
            for member in meeting.started:
                self._hop(partial(self._executed, self.ranks[member], meeting))
            if not meeting.direct:
                self._end_reading(meeting)

    def _end_reading(self, meeting: _Meeting) -> None:
        for member, (start, _) in meeting.started.items():
            if start.buffer != NONE:
                self._hop(partial(self._read, self.ranks[member], meeting))

    def _executed(self, rank: _Rank, meeting: _Meeting) -> None:
        target = rank.buffers[rank.start.target]
        target[:] = self._total(meeting)
        rank.record.sum_digest = digest(target)
        rank.record.sequence, rank.record.completed_ns = rank.next_sequence(), self.now
        self.trace.executions.append(rank.record)
        meeting.executed += 1
        if meeting.direct and meeting.executed == len(meeting.group):
            self._end_reading(meeting)
        self._apply(rank, rank.machine.exec_done, rank.start.version)

    def _read(self, rank: _Rank, meeting: _Meeting) -> None:
        self._total(meeting)
        rank.record.read_ns = self.now
        self._apply(rank, rank.machine.read_done)

    def _contribution(self, rank: int, start: Start) -> Array | None:
        return None if start.buffer == NONE else self.ranks[rank].buffers[start.buffer]

    def _total(self, meeting: _Meeting) -> Array:
        """The sum, read out of the buffers at the last moment at which their roles still promise whole contributions."""
        if meeting.total is None or (meeting.direct and meeting.executed < len(meeting.group)):
            contributions = {rank: self._contribution(rank, start) for rank, (start, _) in meeting.started.items()}
            if not meeting.direct or meeting.executed == len(meeting.group) - 1:  # nobody reads them after this
                for rank, (_, record) in meeting.started.items():
                    contribution = contributions[rank]
                    record.contribution_digest = NULL if contribution is None else digest(contribution)
            total = tree_sum(with_zeros([contributions[rank] for rank in meeting.group]))
            sync = self.schedule.is_sync(next(start.version for start, _ in meeting.started.values()))
            meeting.total = np.asarray(total / np.float32(len(meeting.group))) if sync else total
        return meeting.total
