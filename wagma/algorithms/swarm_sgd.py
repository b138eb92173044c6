"""SwarmSGD: pairwise averaging after several local steps (Nadiradze et al., NeurIPS 2021, algorithm 1; W section 2.2)."""

from __future__ import annotations

from wagma.algorithms.registry import Collectives, register
from wagma.core.effects import Algorithm, ApplyUpdate, ComputeGradient, PairAverage, RankView
from wagma.core.graphs import any_partner


@register("swarm_sgd", Collectives.PAIRS, keys=("local_steps",), plain_alone=True)
def swarm_sgd(rank: RankView) -> Algorithm:
    """After local_steps updates average with a random rank, wherever that one is; the rank that asks waits, the other one does not."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if (t + 1) % rank.settings.local_steps == 0:
            partner = any_partner(rank.schedule.world_size, rank.rank, t, rank.settings.seed)
            if partner is not None:
                yield PairAverage(t, partner)
