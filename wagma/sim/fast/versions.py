"""The wait-avoiding collective as arrays: one version at all ranks, from arrivals to completions.

What the decision machine (`wagma.core.protocol`) decides event by event is decided here in closed form:

* activated: the earliest way down the trees from an arrival (activation.py);
* started: max(activated, completed before); at a sync max(own arrival, completed before);
* fresh: arrived by then, at equal times arrivals come first;
* completed: the messages of the group (exchange.py), and with overlap not before every contribution has been computed to its end;
* a rank that is late merges what executes when it arrives, else the newest that is complete (applications.py).

Versions are taken in order. That a rank may be behind makes no difference to who activates: docs/engines.md.
"""

from __future__ import annotations

import numpy as np

from wagma.core.effects import GroupOutcome
from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.sim.fast.activation import Activation
from wagma.sim.fast.applications import Applications
from wagma.sim.fast.arrays import Flags, Ints, Times, Unfit
from wagma.sim.fast.exchange import Groups
from wagma.sim.fast.ledger import Ledger
from wagma.timing.network import Network


class Versions:
    """The versions of one run's collective."""

    def __init__(self, schedule: Schedule, network: Network, size: int, applications: Applications, ledger: Ledger) -> None:
        self.groups = Groups(schedule, network, size)
        self._schedule = schedule
        self._applications = applications
        self._ledger = ledger
        self._activation = Activation(schedule.world_size, round(network.activation_ns or 0))
        self._last = schedule.previous(schedule.first)
        self._completed: Times = np.zeros(schedule.world_size, np.int64)
        self._reached: Times | None = None  # of the last version, to see whether this one overtakes it
        self._newest: Ints = np.full(schedule.world_size, NONE)  # iteration of the last arrival before the last start

    def join(self, version: int) -> GroupOutcome:
        """All ranks arrive for `version`, or will; what that is for each of them. group_length 0: it has not returned yet.

        Raises Unfit if the version is not the next one, or its activation overtakes an earlier one.
        """
        if version != (expected := self._schedule.next(self._last)):
            raise Unfit(f"it joins version {version} where the next one is {expected}")
        applications, sync = self._applications, self._schedule.is_sync(version)
        if sync:
            applications.catch_up(version, self._last)
        reached, own = self._activate(version, sync)
        if sync:
            started = np.maximum(applications.arrival, self._completed)
        else:
            assert reached is not None
            started = np.maximum(reached, self._completed)
            applications.catch_up(version, self._last, started)
        arrival, here = applications.arrival, applications.here()
        fresh = arrival <= started
        if here is not None:
            fresh &= here
        newest = np.where(fresh, version, (version if here is None else np.where(here, version, applications.iteration)) - 1)
        stamp, oldest = self._stamps(newest, sync)
        completed = self.groups.run(version, started)
        if applications.overlapping:
            whole = np.where(fresh, applications.whole, applications.published)
            if oldest is not None:
                whole[stamp == NONE] = 0  # nothing is contributed
            completed = np.maximum(completed, self.groups.latest(version, whole))
        self._ledger.version(version, sync, reached, own, started, completed, stamp, oldest)
        returning, returned = applications.proceed(version, completed)
        self._ledger.row(version, arrival, returned, fresh, version, returning, sync)
        self._last, self._completed = version, completed
        lengths = self.groups.lengths(version)
        return GroupOutcome(fresh.astype(np.int64), lengths if returning is None else np.where(returning, lengths, 0))

    def finish(self, iterations: int) -> None:
        """Nothing more will start: whoever is behind merges the last version until it has done all iterations."""
        self._applications.catch_up(iterations, self._last)

    def longest_ns(self) -> int:
        """How much later than the latest time of all a version can make it."""
        return self.groups.longest_ns() + self._activation.longest_ns

    def _activate(self, version: int, sync: bool) -> tuple[Times | None, Flags | None]:
        """When each rank is activated, and whether by itself; None if nothing depends on it and nobody asks."""
        if sync and self._activation.metric and not self._ledger.keeps_columns:
            return None, None
        candidates: Flags | None = None
        if self._schedule.selective and not sync:
            candidates = np.zeros(self._schedule.world_size, np.bool_)
            candidates[list(self._schedule.candidates(version))] = True
        reached, own = self._activation.reach(self._applications.unhindered(), candidates)
        if not self._activation.metric:
            if self._reached is not None and (overtaken := np.flatnonzero(reached < self._reached)).size:
                raise Unfit(f"the activation of version {version} overtakes an earlier one at rank {overtaken[0]}")
            self._reached = reached
        return reached, own

    def _stamps(self, newest: Ints, sync: bool) -> tuple[Ints, Ints | None]:
        """(stamp of each contribution, that of the oldest gradient in it); where nothing accumulates the latter is None."""
        if not self._schedule.accumulate:
            return newest, None
        before, self._newest = self._newest, newest
        nothing = newest == before
        return np.where(nothing, NONE, newest), newest if sync else np.where(nothing, NONE, before + 1)
