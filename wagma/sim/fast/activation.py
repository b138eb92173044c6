"""When an activation reaches each rank: the shortest way down binomial trees, by one sweep for each dimension.

A rank that a version reaches over dimension k forwards it on all dimensions above k. So if the ranks' earliest times over dimensions below
k are known, one step gives those over dimensions up to k. docs/engines.md says why one sweep per version is exact.
"""

from __future__ import annotations

import numpy as np

from wagma.core.groups import is_power_of_two
from wagma.core.protocol import dimensions
from wagma.sim.fast.arrays import NEVER_NS, Flags, Times, moved, swapped


class Activation:
    """The trees over `ranks` ranks with `hop_ns` for each hop."""

    def __init__(self, ranks: int, hop_ns: int) -> None:
        #: Among powers of two a way from a to c is never longer than one over b. Otherwise it may be (9 ranks: 0 to 8 to 7 is two hops,
        #: 0 to 7 directly is three), and who is an activator makes a difference.
        self.metric = is_power_of_two(ranks)
        self._hop = hop_ns
        self._distances = [1 << k for k in range(dimensions(ranks))]
        self.longest_ns = hop_ns * len(self._distances)

    def reach(self, arrivals: Times, candidates: Flags | None) -> tuple[Times, Flags]:
        """(when each rank is activated, whether by its own arrival), if ranks arrive then unless activated before; ns.

        candidates: who may activate; None: everybody. An arrival at the very time of an activation precedes it.
        """
        sources = arrivals if candidates is None else np.where(candidates, arrivals, NEVER_NS)
        reached = self._sweep(sources)
        own = reached == sources
        if self.metric or own.all():
            return reached, own
        return self._settle(sources, reached, own)

    def _settle(self, sources: Times, reached: Times, own: Flags) -> tuple[Times, Flags]:
        """A rank that is activated by others before it arrives is no source. Who that is, is settled from both sides.

        With too many sources the times are too early: who is first even so is an activator. With the sure ones only, they are too
        late: who is beaten even so is none. Each turn decides at least the earliest rank that is open, since nothing later than it
        can reach it before.
        """
        while True:
            upper = self._sweep(np.where(own, sources, NEVER_NS))
            beaten = upper < sources
            if (own | beaten).all():
                return upper, own
            reached = self._sweep(np.where(beaten, NEVER_NS, sources))
            own = (reached == sources) & ~beaten

    def _sweep(self, sources: Times) -> Times:
        reached = sources
        for distance in self._distances:
            other = swapped(reached, distance) if self.metric else moved(reached, distance)
            other += self._hop
            reached = np.minimum(reached, other, out=other)
        return reached
