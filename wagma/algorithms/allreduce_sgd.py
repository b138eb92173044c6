"""Synchronous SGD with gradient averaging: the baseline that waits for its slowest rank in every iteration (W section 2.2)."""

from __future__ import annotations

from wagma.algorithms.registry import Collectives, register
from wagma.core.effects import Algorithm, Allreduce, ApplyUpdate, ComputeGradient, RankView, Value


@register("allreduce_sgd", Collectives.EVERY, Value.GRADIENT, plain_alone=True)
def allreduce_sgd(rank: RankView) -> Algorithm:
    """Average the gradients of all ranks in every iteration, then update; models stay bit-identical."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield Allreduce(t, Value.GRADIENT)
        yield ApplyUpdate(t)
