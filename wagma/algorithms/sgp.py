"""Stochastic gradient push: push-sum over a directed graph (Assran et al., ICML 2019, algorithm 1; W sections 2.2 and 5.1)."""

from __future__ import annotations

from collections.abc import Callable

from wagma.algorithms.registry import Collectives, register
from wagma.core.averaging import shares
from wagma.core.effects import (
    Algorithm,
    ApplyUpdate,
    Average,
    Barrier,
    ComputeGradient,
    Exchange,
    Ranks,
    RankView,
    Scale,
    Value,
)
from wagma.core.graphs import exponential_offsets, in_neighbours, out_neighbours

#: (whom a rank sends to, who sends to it) in an iteration.
Neighbours = tuple[tuple[Ranks, ...], tuple[Ranks, ...]]
Digraph = Callable[[int], Neighbours]


def exponential(rank: RankView) -> Digraph:
    """The directed exponential graph with the out-neighbours that the user has set; at most all other ranks."""
    world_size, count = rank.schedule.world_size, rank.settings.out_neighbours

    known: dict[tuple[int, ...], Neighbours] = {}  # the graphs repeat, and for an array of ranks they are worth keeping

    def neighbours(t: int) -> Neighbours:
        offsets = exponential_offsets(world_size, count, t)
        if offsets not in known:
            known[offsets] = out_neighbours(world_size, count, t, rank.rank), in_neighbours(world_size, count, t, rank.rank)
        return known[offsets]

    return neighbours


@register("sgp", Collectives.NEIGHBOURS, keys=("out_neighbours", "global_clock"), plain_alone=True)
def sgp(rank: RankView, graph: Callable[[RankView], Digraph] = exponential) -> Algorithm:
    """Update, then push shares of model and weight along the graph: x = P (x - eta g(z)), w = P w, z = x / w.

    The model is z between iterations. Columns of P add up to 1, whatever the graph, so sum x and sum w over all ranks are kept; where
    ranks receive as much as they send, w stays exactly 1.
    """
    digraph = graph(rank)
    weight = 1.0
    for t in rank.iterations:
        to, sources = digraph(t)
        given, kept = shares(len(to))
        yield ComputeGradient(t)  # at z
        yield Scale(t, weight)  # x = w z
        yield ApplyUpdate(t)
        if rank.settings.global_clock:
            yield Barrier(t)
        outcome = yield Exchange(t, Value.MODEL, to, sources, share=given, mass=given * weight)
        weight = kept * weight + outcome.mass
        yield Average(t, kept, weight)  # z = (sum of the shares received + the own one) / w
