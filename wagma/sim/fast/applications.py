"""Where each rank's application is: when it arrives next, and for which iteration, if it is behind the version that its rank executes."""

from __future__ import annotations

import numpy as np

from wagma.core.protocol import NONE
from wagma.sim.fast.arrays import NEVER_NS, Flags, Ints, Times
from wagma.sim.fast.ledger import Ledger


class Applications:
    """All ranks' applications. Those that are not `behind` are in the iteration that is being driven.

    arrival: when a rank arrives next, and before it computes, when it has returned. whole: when the compute ends of which communication
    overlaps the last part; without overlap that is `arrival`. published: the same of what the rank has arrived with last. Of those
    behind: iteration: for which one they arrive next; future: how long they compute for those from then to the one that is being
    driven.
    """

    def __init__(self, ranks: int, iterations: int, depth: int, merge_once: bool, overlapping: bool, ledger: Ledger) -> None:
        self.arrival: Times = np.zeros(ranks, np.int64)
        self.iteration: Ints = np.zeros(ranks, np.int64)
        self.future: Times = np.zeros(ranks, np.int64)
        self.behind: Flags = np.zeros(ranks, np.bool_)
        self.any_behind = False
        self.overlapping = overlapping
        self.published: Times = np.zeros(ranks, np.int64)
        self._whole: Times = np.zeros(ranks, np.int64)
        self._early: Times = np.zeros(ranks, np.int64)
        self._iterations = iterations
        self._ledger = ledger
        # Compute times of the last `depth` iterations: no rank is further behind. 0: nobody ever is.
        self._window = np.zeros((depth, ranks), np.int64)
        self._early_window = np.zeros((depth if overlapping else 0, ranks), np.int64)
        # The newest version that each rank has merged, if it merges none twice.
        self._merged: Ints | None = np.full(ranks, NONE) if merge_once else None

    @property
    def whole(self) -> Times:
        """See the class."""
        return self._whole if self.overlapping else self.arrival

    def compute(self, iteration: int, durations: Times, early: Times | None) -> None:
        """All ranks that are not behind compute; those behind will have to. early: how much before the end they arrive."""
        place = iteration % max(1, self._window.shape[0])
        if self._window.shape[0]:
            self._window[place] = durations
        if not self.any_behind:
            self.arrival = self.arrival + durations
        else:
            ahead = ~self.behind
            np.add(self.future, durations, out=self.future, where=self.behind)
            np.add(self.arrival, durations, out=self.arrival, where=ahead)
            self.iteration[ahead] = iteration
        if early is not None:
            ahead = ~self.behind
            np.copyto(self._whole, self.arrival, where=ahead)
            self.arrival = self.arrival - np.where(ahead, early, 0)
            self._early = early
            if self._window.shape[0]:
                self._early_window[place] = early

    def unhindered(self) -> Times:
        """When each rank arrives for the iteration that is being driven, if nothing holds it up."""
        if not self.any_behind:
            return self.arrival
        return self.whole + self.future - self._early if self.overlapping else self.arrival + self.future

    def here(self) -> Flags | None:
        """Who is in the iteration that is being driven; None: everybody."""
        return ~self.behind if self.any_behind else None

    def finish_compute(self) -> None:
        """Communication that began before the end of the compute does not end the iteration before that."""
        if self.overlapping:
            self.arrival = np.maximum(self.arrival, self._whole)

    def wait_for_all(self, delay_ns: int) -> None:
        """A barrier of all ranks, none of which is behind: they go on `delay_ns` after the last, once every compute has ended."""
        self.arrival = np.full_like(self.arrival, self.arrival.max() + delay_ns)
        self._whole = np.full_like(self._whole, self._whole.max())

    def catch_up(self, driven: int, newest: int, until: Times | None = None) -> None:
        """Ranks behind that arrive by `until` (None: ever) find nothing under way: they merge the newest completed version at once."""
        if not self.any_behind:
            return
        late = self.behind if until is None else self.behind & (self.arrival <= until)
        ranks = np.flatnonzero(late)
        limit = np.full(self.arrival.shape, NEVER_NS) if until is None else until
        while ranks.size:
            returned = self.whole[ranks]
            merged = np.full(ranks.shape, newest)
            if self._merged is not None:
                merged[self._merged[ranks] >= newest] = NONE
                self._merged[ranks] = newest
            self._ledger.late(self.iteration[ranks], ranks, self.arrival[ranks], returned, merged)
            if self.overlapping:
                self.published[ranks] = returned
            done = self.iteration[ranks] + 1 == self._iterations
            self.behind[ranks[done]] = False
            ranks, returned = ranks[~done], returned[~done]
            self._next_iteration(ranks, returned)
            there = self.iteration[ranks] == driven
            self.behind[ranks[there]] = False
            ranks = ranks[~there]
            ranks = ranks[self.arrival[ranks] <= limit[ranks]]
        self.any_behind = bool(self.behind.any())

    def proceed(self, version: int, completed: Times) -> tuple[Flags | None, Times]:
        """`version` is complete: who waits for it returns. Gives who of those that are here does (None: everybody), and when.

        Who arrived while it executed merges it, whatever iteration it is in. Who has not arrived yet is behind.
        """
        back = self.arrival <= completed
        returned = np.maximum(completed, self._whole) if self.overlapping else completed
        if self.overlapping:
            self.published = np.where(back, self._whole, self.published)
        if not self.any_behind and back.all():
            self.arrival = returned
            if self._merged is not None:
                self._merged[:] = version
            return None, returned
        if not self.any_behind:
            self.iteration[:] = version
        self.arrival = self.arrival.copy()  # the caller still records what it was
        here = ~self.behind
        ranks = np.flatnonzero(self.behind & back)
        if ranks.size:
            merged = np.full(ranks.shape, version)
            self._ledger.late(self.iteration[ranks], ranks, self.arrival[ranks], returned[ranks], merged)
            self._next_iteration(ranks, returned[ranks])
        if self._merged is not None:
            self._merged[back] = version
        returning = here & back
        np.copyto(self.arrival, returned, where=returning)
        self.behind = ~returning
        self.future[here] = 0
        self.any_behind = True
        return returning, returned

    def _next_iteration(self, ranks: Ints, returned: Times) -> None:
        """Ranks that are behind return and compute for their next iteration, which is not beyond the one that is being driven."""
        self.iteration[ranks] += 1
        place = self.iteration[ranks] % self._window.shape[0]
        durations = self._window[place, ranks]
        self.future[ranks] -= durations
        end = returned + durations
        self.arrival[ranks] = end
        if self.overlapping:
            self._whole[ranks] = end
            self.arrival[ranks] -= self._early_window[place, ranks]
