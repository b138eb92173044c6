"""Local SGD: independent ranks that average their models every H iterations (W sections 2.2 and 5.1; H is `sync_period`)."""

from __future__ import annotations

from wagma.algorithms.registry import Collectives, register
from wagma.core.effects import Algorithm, Allreduce, ApplyUpdate, ComputeGradient, RankView, Value


@register("local_sgd", Collectives.PERIODIC, plain_alone=True)
def local_sgd(rank: RankView) -> Algorithm:
    """Update locally; average the models of all ranks in every sync_period-th iteration."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if rank.schedule.is_sync(t):
            yield Allreduce(t, Value.MODEL)
