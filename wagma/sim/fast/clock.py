"""How long all ranks compute, iteration by iteration, drawn some iterations at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wagma.scenario import Scenario
from wagma.sim.fast.arrays import LATEST_NS, Times, Unfit
from wagma.timing.imbalance import Times as Draws

#: Elements of a block of iterations. Larger ones are slower again: from 128 KiB on arrays come fresh from the system each time.
BLOCK = 1 << 13


class Clock:
    """Compute times of a run.

    delayed: whether injected delays come on top. strictly: whether every iteration must take time; join_ns: the longest that an iteration's
    collective can add to the latest time of all.
    """

    def __init__(
        self, scenario: Scenario, delayed: bool, strictly: bool, join_ns: int, computed: Callable[[int, Times], None]
    ) -> None:
        self._draws = Draws(scenario.ranks, scenario.seed, scenario.compute, scenario.imbalance, scenario.noise)
        self._iterations = scenario.iterations
        self._delayed = delayed
        self._strictly = strictly
        self._join_ns = join_ns
        self._computed = computed
        self._count = max(1, BLOCK // scenario.ranks)
        self._overlap = scenario.network.overlap
        self._block: Times = np.empty((0, scenario.ranks), np.int64)
        self._early_block: Times | None = None
        self._first = 0
        self._latest = 0

    def durations(self, iteration: int) -> tuple[Times, Times | None]:
        """(compute time and delay of each rank, how long before their end communication begins; None: nowhere before), in ns.

        Iterations are asked for in order. Raises Unfit.
        """
        if iteration >= self._first + self._block.shape[0]:
            self._draw(iteration)
        row = iteration - self._first
        return self._block[row], None if self._early_block is None else self._early_block[row]

    def _draw(self, first: int) -> None:
        count = min(self._count, self._iterations - first)
        computed = self._draws.compute_block(first, count)
        self._computed(first, computed)
        self._block = computed + self._draws.delay_block(first, computed) if self._delayed else computed
        self._first = first
        shortest = int(self._block.min())
        if self._overlap:
            self._early_block = np.rint(self._overlap * computed).astype(np.int64)
            shortest = int((self._block - self._early_block).min())
        if self._strictly and shortest <= 0:
            raise Unfit("a rank computes for less than a nanosecond, so that it arrives at the time at which it returned")
        self.lengthen(sum(self._block.max(axis=1).tolist()) + self._join_ns * count)

    def lengthen(self, by_ns: int) -> None:
        """Something is about to happen that takes so long at most. Raises Unfit if times could leave their 63 bits."""
        self._latest += by_ns
        if self._latest > LATEST_NS:
            raise Unfit(f"times may exceed {LATEST_NS} ns")
