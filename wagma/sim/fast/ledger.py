"""What is kept of a fast run: always what the figures need, and every column if asked for.

At a million ranks the columns of a hundred iterations would take six gigabytes; the figures need one number for each rank and
iteration, how long it took (for its percentiles), and sums.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from wagma.columns import Columns, Scores, Totals
from wagma.core.protocol import NONE
from wagma.scenario import Scenario
from wagma.sim.fast.arrays import Flags, Ints, Times

ENGINE = "fast"


class Ledger:
    """Takes a run's events as arrays over ranks."""

    def __init__(self, scenario: Scenario, algorithm: str, grouped: bool, columns: bool) -> None:
        shape = (scenario.iterations, scenario.ranks)
        self.keeps_columns = columns
        self._scenario = scenario
        self._algorithm = algorithm
        self._grouped = grouped
        self._durations = np.zeros(shape, np.int64)
        self._returned: Times = np.zeros(scenario.ranks, np.int64)
        self._computed_sum: Times = np.zeros(scenario.ranks, np.int64)
        self._staleness: Counter[int] = Counter()
        self._fresh = self._joined = self._exchanged = 0
        self._versions: list[int] = []
        self._version_rows: list[tuple[Times, Flags, Times, Times, Ints, Ints | None]] = []
        kept = shape if columns else (0, scenario.ranks)
        self._arrival, self._return, self._computed = (np.zeros(kept, np.int64) for _ in range(3))
        self._is_fresh = np.full(kept, NONE, np.int8)
        self._merged = np.full(kept, NONE, np.int32)

    def computed(self, first: int, rows: Times) -> None:
        """Compute times, without injected delays, of iterations from `first` on: [iteration, rank]."""
        self._computed_sum += rows.sum(axis=0)
        if self.keeps_columns:
            self._computed[first : first + rows.shape[0]] = rows

    def row(
        self, iteration: int, arrival: Times, returned: Times, fresh: Flags | None, merged: int, who: Flags | None, sync: bool
    ) -> None:
        """All ranks' iteration, or of the ranks `who` only: the others follow by `late`. fresh None: no collective."""
        if fresh is not None and not (sync and self._grouped):
            self._fresh += int(np.count_nonzero(fresh))
            self._joined += fresh.size
        np.subtract(returned, self._returned, out=self._durations[iteration])
        self._returned = returned if who is None else np.where(who, returned, self._returned)
        if self.keeps_columns:
            self._arrival[iteration], self._return[iteration] = arrival, returned
            self._merged[iteration] = merged
            self._is_fresh[iteration] = NONE if fresh is None else fresh

    def late(self, iterations: Ints, ranks: Ints, arrival: Times, returned: Times, merged: Ints) -> None:
        """Iterations of some ranks, one each, that were late for their versions."""
        self._durations[iterations, ranks] = returned - self._returned[ranks]
        self._returned = self._returned.copy()  # it may be somebody else's array
        self._returned[ranks] = returned
        if self.keeps_columns:
            self._arrival[iterations, ranks], self._return[iterations, ranks] = arrival, returned
            self._merged[iterations, ranks] = merged
            self._is_fresh[iterations, ranks] = 0

    def version(
        self, version: int, sync: bool, activated: Times | None, activator: Flags | None, started: Times, completed: Times,
        stamp: Ints, oldest: Ints | None,
    ) -> None:  # fmt: skip
        """One version at all ranks."""
        if not (sync and self._grouped):
            stale = version - stamp if oldest is None else (version - oldest)[stamp >= 0]
            values, counts = np.unique(stale, return_counts=True)
            self._staleness.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        if self.keeps_columns:
            assert activated is not None
            assert activator is not None
            self._versions.append(version)
            self._version_rows.append((activated, activator, started, completed, stamp, oldest))

    def exchanged(self, received: int) -> None:
        """So many models came from neighbours, none of them stale."""
        self._exchanged += received

    def totals(self, wall_s: float) -> Totals:
        """What the figures need."""
        ranks = self._scenario.ranks
        staleness = self._staleness + Counter({0: self._exchanged})
        return Totals(
            self._scenario, self._algorithm, ENGINE, Scores(), wall_s,
            counts=np.full(ranks, self._scenario.iterations),
            begin_ns=np.zeros(ranks, np.int64),
            finish_ns=self._returned,
            computed_ns=self._computed_sum,
            durations_ns=self._durations,
            staleness=dict(staleness), fresh=self._fresh, joined=self._joined,
        )  # fmt: skip

    def columns(self, wall_s: float) -> Columns:
        """Everything."""
        ranks = self._scenario.ranks
        rows = [list(column) for column in zip(*self._version_rows, strict=True)] or [[] for _ in range(6)]
        table = [np.array(column, np.int64).reshape(len(column), ranks) for column in (rows[0], rows[2], rows[3], rows[4])]
        oldest = [row for row in rows[5] if row is not None]
        return Columns(
            self._scenario, self._algorithm, ENGINE, Scores(), wall_s,
            begin_ns=np.zeros(ranks, np.int64),
            counts=np.full(ranks, self._scenario.iterations),
            arrival_ns=self._arrival, return_ns=self._return, computed_ns=self._computed, fresh=self._is_fresh,
            merged_version=self._merged, versions=np.array(self._versions, np.int64),
            activated_ns=table[0], activator=np.array(rows[1], np.bool_).reshape(len(rows[1]), ranks),
            started_ns=table[1], completed_ns=table[2], stamp=table[3],
            oldest_stamp=np.array(oldest, np.int64).reshape(len(oldest), ranks) if oldest else None,
            executed=np.ones(table[0].shape, np.bool_),
            exchange_staleness=np.zeros(self._exchanged, np.int64),
        )  # fmt: skip
