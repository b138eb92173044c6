"""System noise: what a rank computes longer because its node's operating system does other things now and then (`[noise]`).

Simulator only: a real run has its own. As in Hoefler, Schneider, Lumsdaine, "Characterizing the Influence of System Noise on Large-Scale
Applications by Simulation" (SC10), noise is a series of detours, each of which takes the processor away for some time; here they hit the
compute time, which is all but a thousandth of an iteration, and not the overheads of messages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wagma.draws import Iterations, uniform
from wagma.sections import Section
from wagma.timing.compute import LONGEST_S, Compute, Ranks, Seconds, read_compute

#: Detours that come more often than every microsecond are a slower processor.
MOST_PER_S = 1e6
#: Expected detours beyond which their number is drawn from the normal distribution of the same mean and variance.
MANY = 1e4


@dataclass(frozen=True, slots=True)
class Noise:
    """Detours: independent ones, on average detours_per_s in a second of compute time, each detour_s seconds long; and on top
    per_iteration, seconds drawn for each rank and iteration.
    """

    detours_per_s: float = 0.0
    detour_s: float = 0.0
    per_iteration: Compute | None = None

    def seconds(self, seed: int, ranks: Ranks, iteration: Iterations, computed_s: Seconds) -> Seconds:
        """How much longer each rank computes in an iteration in which it computes for computed_s without noise."""
        total = np.zeros(ranks.shape)
        if self.detours_per_s and self.detour_s:
            u = uniform(seed, "noise.detours", ranks, iteration)
            total += _detours(u, self.detours_per_s * computed_s) * self.detour_s
        if self.per_iteration is not None:
            total += self.per_iteration.draw(seed, "noise.per_iteration", ranks, iteration)
        return total


def _detours(u: Seconds, expected: Seconds) -> Seconds:
    """Poisson draws by the inverse of the CDF: the fewest detours whose CDF is not below the draw. Beyond MANY: by the normal one."""
    from scipy.special import ndtri, pdtr, pdtrik  # here and not above: most scenarios do without

    few = np.minimum(expected, MANY)
    count = np.maximum(np.ceil(pdtrik(u, np.maximum(few, np.finfo(float).tiny))), 0)
    fewer = np.maximum(count - 1, 0)
    exact = np.where(pdtr(fewer, few) >= u, fewer, count)
    return np.where(expected <= MANY, exact, np.rint(expected + np.sqrt(expected) * ndtri(u)))


def read_noise(section: Section) -> Noise:
    """`[noise]`; docs/scenarios.md has the keys."""
    rate = section.number("detours_per_s", 0.0, MOST_PER_S, default=0.0)
    length = section.number("detour_s", 0.0, LONGEST_S, default=0.0)
    if (rate > 0) != (length > 0):
        section.fail("detour_s", length, f"needs to go with detours_per_s, which is {rate:g}: both greater than 0, or neither")
    if rate * length > 1:
        section.fail(
            "detour_s", length, f"must be at most 1 / detours_per_s = {1 / rate:g}: detours at most double the compute time"
        )
    per_iteration = None
    if "per_iteration" in section.names():
        inner = section.subsection("per_iteration")
        per_iteration = read_compute(inner)
        if per_iteration.measured is not None:
            section.fail("per_iteration.kind", "trace", "must be a distribution; times that were measured contain their noise")
    else:
        section.take("per_iteration", None)
    section.finish()
    return Noise(rate, length, per_iteration)
