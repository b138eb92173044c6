"""The upper limit of every comparison: no communication, no waiting, no injected delay (W section 5.1)."""

from __future__ import annotations

from wagma.algorithms.registry import Collectives, register
from wagma.core.effects import Algorithm, ApplyUpdate, ComputeGradient, RankView


@register("ideal", Collectives.NONE, delayed=False, plain_alone=True)
def ideal(rank: RankView) -> Algorithm:
    """Each rank trains by itself; a throughput to compare with, not a way to train one model."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
