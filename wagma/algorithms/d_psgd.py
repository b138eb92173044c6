"""D-PSGD: decentralized parallel SGD on a ring (Lian et al., NeurIPS 2017, algorithm 1; W sections 2.2 and 5.1)."""

from __future__ import annotations

from wagma.algorithms.registry import Collectives, register
from wagma.core.effects import Algorithm, ApplyUpdate, Average, Barrier, ComputeGradient, Exchange, RankView, Value
from wagma.core.graphs import ring


@register("d_psgd", Collectives.NEIGHBOURS, keys=("global_clock",), plain_alone=True)
def d_psgd(rank: RankView) -> Algorithm:
    """Average with both neighbours, equally, then apply the gradient of the model before: x = W x - eta g(x)."""
    neighbours = ring(rank.schedule.world_size, rank.rank)
    for t in rank.iterations:
        yield ComputeGradient(t)
        if rank.settings.global_clock:
            yield Barrier(t)
        outcome = yield Exchange(t, Value.MODEL, to=neighbours, sources=neighbours)
        yield Average(t, 1, 1 + outcome.mass)  # (x + sum of the neighbours') / (1 + their number)
        yield ApplyUpdate(t)
