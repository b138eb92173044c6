"""Who exchanges models with whom in gossip algorithms: rings, directed exponential graphs, pairs.

Every function is one of (world_size, rank, iteration) and settings alone: no rank asks another. Of the synchronous graphs `rank` is
an int, or an int64 array of any shape over ranks, in which case each neighbour is an array of that shape.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wagma.core.mixing import below

Ranks = TypeVar("Ranks", int, npt.NDArray[np.int64])


def ring(world_size: int, rank: Ranks) -> tuple[Ranks, ...]:
    """(the rank before, the rank after) on the ring of all ranks; of two ranks the other one, of one nobody (D-PSGD's W)."""
    if world_size == 1:
        return ()
    if world_size == 2:
        return (1 - rank,)
    return (rank - 1) % world_size, (rank + 1) % world_size


def exponential_offsets(world_size: int, neighbours: int, iteration: int) -> tuple[int, ...]:
    """How far ahead every rank's out-neighbours are in `iteration`: min(neighbours, world_size - 1) offsets, distinct modulo P.

    The offsets 2^0, 2^1, ... below world_size, `neighbours` of them in each iteration, cyclically (the directed exponential graph of
    Assran et al., ICML 2019, appendix A). Where more neighbours are asked for than there are such offsets, the smallest others
    fill up, and every iteration has the same ones.
    """
    count = min(neighbours, world_size - 1)
    cycle = _cycle(world_size, count)
    return tuple(cycle[(iteration * count + i) % len(cycle)] for i in range(count))


@lru_cache(maxsize=64)
def _cycle(world_size: int, least: int) -> tuple[int, ...]:
    """The powers of two below world_size, filled up to `least` offsets."""
    powers = [1 << k for k in range((world_size - 1).bit_length())]
    others = [offset for offset in range(1, world_size) if offset & (offset - 1)]
    return tuple(powers + others[: max(0, least - len(powers))])


def out_neighbours(world_size: int, neighbours: int, iteration: int, rank: Ranks) -> tuple[Ranks, ...]:
    """To whom `rank` sends on the directed exponential graph."""
    return tuple((rank + offset) % world_size for offset in exponential_offsets(world_size, neighbours, iteration))


def in_neighbours(world_size: int, neighbours: int, iteration: int, rank: Ranks) -> tuple[Ranks, ...]:
    """Who sends to `rank` on the directed exponential graph: exactly those that have it among their out-neighbours."""
    return tuple((rank - offset) % world_size for offset in exponential_offsets(world_size, neighbours, iteration))


def is_active(rank: int) -> bool:
    """Whether `rank` is on the side of AD-PSGD's bipartition that asks (even ranks); odd ranks answer only.

    An odd world has one active rank more than passive ones; the graph between the sides is complete, so that this is bipartite
    for every world size (a ring of odd length is not).
    """
    return rank % 2 == 0


def passive_partner(world_size: int, rank: int, iteration: int, seed: int) -> int | None:
    """The odd rank with which an active one averages in `iteration`, drawn uniformly; None in a world of one rank."""
    if world_size < 2:
        return None
    return 2 * int(below(world_size // 2, seed, "ad_psgd.partner", rank, iteration)) + 1


def active_partner(world_size: int, rank: int, iteration: int, seed: int) -> int | None:
    """The even rank with which an odd one averages if both sides ask, drawn uniformly; None in a world of one rank."""
    if world_size < 2:
        return None
    return 2 * int(below((world_size + 1) // 2, seed, "ad_psgd.active_partner", rank, iteration))


def any_partner(world_size: int, rank: int, iteration: int, seed: int) -> int | None:
    """Another rank, drawn uniformly from all of them (SwarmSGD on the complete graph); None in a world of one rank."""
    if world_size < 2:
        return None
    other = int(below(world_size - 1, seed, "swarm_sgd.partner", rank, iteration))
    return other + (other >= rank)
