"""AD-PSGD: asynchronous decentralized parallel SGD (Lian et al., ICML 2018, algorithm 1; W sections 2.2 and 5.1)."""

from __future__ import annotations

from wagma.algorithms.registry import Collectives, register
from wagma.core.effects import (
    Algorithm,
    ApplyUpdate,
    AwaitAveraging,
    AwaitIteration,
    ComputeGradient,
    PairAverage,
    RankView,
)
from wagma.core.graphs import active_partner, is_active, passive_partner


def communication(rank: RankView) -> Algorithm:
    """The second activity of a rank: while the first one computes, average once in every iteration with a passive rank.

    Only even ranks ask, only odd ones answer, so that no cycle of ranks can wait for each other. With all_ask odd ranks ask even ones
    too: each then takes part in two averagings per iteration, and must answer while it waits.
    """
    asks = rank.settings.all_ask or is_active(rank.rank)
    draw = passive_partner if is_active(rank.rank) else active_partner
    for t in rank.iterations:
        yield AwaitIteration(t)
        partner = draw(rank.schedule.world_size, rank.rank, t, rank.settings.seed)
        if asks and partner is not None:
            yield PairAverage(t, partner)


@register("ad_psgd", Collectives.PAIRS, keys=("all_ask", "await_averaging"), companion=communication, plain_alone=True)
def ad_psgd(rank: RankView) -> Algorithm:
    """Compute gradients and apply them to whatever the averaging has made of the model meanwhile; wait for nobody.

    With await_averaging an iteration ends when both its gradient and its averaging are done, whichever takes longer.
    """
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if rank.settings.await_averaging:
            yield AwaitAveraging(t)
