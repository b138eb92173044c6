"""A run as arrays, and the sums that its figures are computed from: the same for both engines and both worlds.

`Columns` has one row for each iteration (or version) and one column for each rank. `Totals` is what is left when only figures are asked
for: one duration for each iteration and rank, and sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.errors import InputError
from wagma.scenario import Scenario
from wagma.trace import Trace

Nanoseconds = npt.NDArray[np.int64]
Integers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a run's models reach, as the header of its trace has it; of a run that trained nothing, nothing."""

    score: float | None = None
    name: str | None = None
    direction: str | None = None
    own: float | None = None

    @classmethod
    def of(cls, trace: Trace) -> Scores:
        """From the header."""
        header = trace.header
        return cls(header.score, header.score_name, header.score_direction, header.own_score)


@dataclass(slots=True)
class Totals:
    """What the figures of a run are made of.

    By rank, int64: counts (iterations), begin_ns, finish_ns, computed_ns (without delays). durations_ns: of each iteration, from the return
    before to its own, shape (iterations, ranks); rows beyond a rank's count mean nothing. staleness: value -> how often, over contributions
    to versions that are no syncs, and over what gossip received. fresh of joined: arrivals at such versions. work: of each rank, in the
    scenario's unit; None: `work.per_rank` in every iteration.
    """

    scenario: Scenario
    algorithm: str
    engine: str
    scores: Scores
    wall_s: float
    counts: Nanoseconds
    begin_ns: Nanoseconds
    finish_ns: Nanoseconds
    computed_ns: Nanoseconds
    durations_ns: Nanoseconds
    staleness: dict[int, int]
    fresh: int
    joined: int
    work: npt.NDArray[np.float64] | None = None


@dataclass(slots=True)
class Columns:
    """A run's records as arrays.

    Of shape (iterations, ranks), the first counts[rank] rows of each rank: arrival_ns, return_ns, computed_ns (int64), fresh (1, 0, or -1:
    no collective), merged_version (-1: nothing). Of shape (versions, ranks), row i being version versions[i], where `executed`:
    activated_ns, started_ns, completed_ns, stamp (int64), activator (bool), oldest_stamp (None: contributions do not accumulate).
    exchange_staleness: one item for each model that came without a collective. work: of each rank, as `Totals` has it.
    """

    scenario: Scenario
    algorithm: str
    engine: str
    scores: Scores
    wall_s: float
    begin_ns: Nanoseconds
    counts: Nanoseconds
    arrival_ns: Nanoseconds
    return_ns: Nanoseconds
    computed_ns: Nanoseconds
    fresh: Integers
    merged_version: Integers
    versions: Integers
    executed: npt.NDArray[np.bool_]
    activated_ns: Nanoseconds
    activator: npt.NDArray[np.bool_]
    started_ns: Nanoseconds
    completed_ns: Nanoseconds
    stamp: Integers
    oldest_stamp: Integers | None
    exchange_staleness: Integers
    work: npt.NDArray[np.float64] | None = None

    @classmethod
    def of(cls, trace: Trace) -> Columns:
        """The records of a trace, each rank's in causal order (`Trace.sort`)."""
        ranks = {start.rank: column for column, start in enumerate(trace.starts)}
        scenario, width = trace.scenario, len(ranks)
        columns = np.array([ranks[record.rank] for record in trace.iterations], np.int64)
        counts = np.bincount(columns, minlength=width)
        rows = _running_count(columns, counts)
        iterations = _Table(trace.iterations, (int(counts.max(initial=0)), width), rows, columns)
        versions, places = np.unique(np.array([e.version for e in trace.executions], np.int64), return_inverse=True)
        members = np.array([ranks[e.rank] for e in trace.executions], np.int64)
        executions = _Table(trace.executions, (versions.size, width), places, members)
        accumulates = any(e.oldest_stamp is not None for e in trace.executions)
        return cls(
            scenario, trace.header.algorithm, trace.header.engine, Scores.of(trace), trace.wall_s,
            begin_ns=np.array([start.started_ns for start in trace.starts], np.int64),
            counts=counts,
            arrival_ns=iterations.column(lambda a: a.arrival_ns),
            return_ns=iterations.column(lambda a: a.return_ns),
            computed_ns=iterations.column(lambda a: a.computed_ns, 0),
            fresh=iterations.column(lambda a: NONE if a.fresh is None else a.fresh),
            merged_version=iterations.column(lambda a: NONE if a.merged_version is None else a.merged_version),
            versions=versions,
            executed=executions.column(lambda _: True, False).astype(np.bool_),
            activated_ns=executions.column(lambda e: e.activated_ns),
            activator=executions.column(lambda e: e.activator, False).astype(np.bool_),
            started_ns=executions.column(lambda e: e.started_ns),
            completed_ns=executions.column(lambda e: e.completed_ns),
            stamp=executions.column(lambda e: e.own_stamp),
            oldest_stamp=executions.column(lambda e: NONE if e.oldest_stamp is None else e.oldest_stamp) if accumulates else None,
            exchange_staleness=np.array([max(0, x.iteration - s) for x in trace.exchanges for s in x.stamps], np.int64),
            work=_work(trace, columns, width),
        )  # fmt: skip

    @property
    def schedule(self) -> Schedule:
        """The collectives that the run's algorithm joins."""
        return self.scenario.schedule(self.algorithm)

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Which rows of which ranks are iterations; shape (iterations, ranks)."""
        return np.arange(self.return_ns.shape[0])[:, None] < self.counts

    def totals(self) -> Totals:
        """The sums."""
        before = np.concatenate((self.begin_ns[None, :], self.return_ns))
        ranks = np.arange(self.counts.size)
        schedule, rows = self.schedule, np.arange(self.return_ns.shape[0])
        sync = np.array([schedule.grouped and schedule.is_sync(int(t)) for t in rows], np.bool_)
        joined = self.valid & (self.fresh != NONE) & ~sync[:, None]
        return Totals(
            self.scenario, self.algorithm, self.engine, self.scores, self.wall_s,
            counts=self.counts, begin_ns=self.begin_ns, finish_ns=before[self.counts, ranks],
            computed_ns=np.where(self.valid, self.computed_ns, 0).sum(axis=0),
            durations_ns=np.diff(before, axis=0),
            staleness=self._staleness(schedule), fresh=int((self.fresh[joined] == 1).sum()), joined=int(joined.sum()),
            work=self.work,
        )  # fmt: skip

    def _staleness(self, schedule: Schedule) -> dict[int, int]:
        sync = np.array([schedule.grouped and schedule.is_sync(int(v)) for v in self.versions], np.bool_)
        counted = self.executed & ~sync[:, None]
        stamp = self.stamp
        if self.oldest_stamp is not None:
            counted &= self.stamp >= 0
            stamp = self.oldest_stamp
        found = np.concatenate(((self.versions[:, None] - stamp)[counted], self.exchange_staleness))
        values, counts = np.unique(found, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))


class _Table:
    """Records laid out as a table."""

    def __init__(self, records: Sequence[Any], shape: tuple[int, int], rows: Integers, columns: Integers) -> None:
        self._records = records
        self._shape = shape
        self._place = rows, columns

    def column(self, read: Callable[[Any], int], nothing: int = NONE) -> Nanoseconds:
        """One field of all records, `nothing` where there is no record."""
        table = np.full(self._shape, nothing, np.int64)
        try:
            table[self._place] = np.fromiter(map(read, self._records), np.int64, len(self._records))
        except OverflowError as error:
            raise InputError(
                "the run goes beyond 2^63 ns, 292 years: figures need shorter times, or fewer iterations"
            ) from error
        return table


def _work(trace: Trace, columns: Integers, width: int) -> npt.NDArray[np.float64] | None:
    """The work of each rank; None if no iteration says how much it was."""
    if all(record.work is None for record in trace.iterations):
        return None
    usual = trace.scenario.work_per_rank
    each = np.array([usual if record.work is None else record.work for record in trace.iterations], np.float64)
    return np.bincount(columns, each, minlength=width).astype(np.float64)


def _running_count(columns: Integers, counts: Nanoseconds) -> Integers:
    """As which of its column's records each record comes."""
    order = np.argsort(columns, kind="stable")
    first = np.cumsum(counts) - counts
    rows = np.empty_like(order)
    rows[order] = np.arange(order.size) - np.repeat(first, counts)
    return rows
