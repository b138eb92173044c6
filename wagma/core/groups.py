"""Which ranks average with each other in which iteration.

For powers of two this is the rotating butterfly of WAGMA-SGD (Li et al., TPDS 2021, section 3). The paper defines nothing
else; for any other world size or group size wagma deals the ranks out like cards: a riffle into as many piles as there are
groups, so that the next groups take their members from different groups, and a rotation, so that uneven groups do not
always have the same members. Both are functions of (world_size, group_size, iteration) alone: no rank asks another.

A group is a tuple of ranks *in association order*: position i of the group is leaf i of the association tree
(`wagma.core.trees`), so that a butterfly exchange and a sum along the tree add up in the same order.
"""

from __future__ import annotations

import math
from functools import lru_cache

Group = tuple[int, ...]


def is_power_of_two(n: int) -> bool:
    """Whether n is 1, 2, 4, 8, ..."""
    return n > 0 and n & (n - 1) == 0


def ceil_log(n: int, base: int) -> int:
    """Smallest k with base**k >= n, by integers (a float log is off by one at exact powers)."""
    k, power = 0, 1
    while power < n:
        power *= base
        k += 1
    return k


def sqrt_group_size(world_size: int) -> int:
    """The group size called "sqrt": the paper's square root of the world size, defined for every world size.

    Powers of two round log2 of the group size up (P=8 gives 4, P=32 gives 8); others round the root to nearest.
    """
    if is_power_of_two(world_size):
        return 1 << ((world_size.bit_length()) // 2)
    return int(math.sqrt(world_size) + 0.5)


def propagation_bound(world_size: int, group_size: int) -> int | None:
    """Iterations after which every update has reached every rank, whatever iteration it starts in; None for never.

    Exact for the butterfly (log2 P over log2 S, rounded up: the paper's log_S P), an upper bound for the riffle.
    """
    if world_size == 1:
        return 0
    if group_size == 1:
        return None
    if is_power_of_two(world_size) and is_power_of_two(group_size):
        return -(-(world_size.bit_length() - 1) // (group_size.bit_length() - 1))
    return 2 * ceil_log(world_size, group_size) + 2


@lru_cache(maxsize=1 << 16)
def _butterfly_group(world_size: int, group_size: int, first: int, rank: int) -> Group:
    """Ranks that `rank` meets in log2(group_size) consecutive phases of the butterfly from phase `first`, wrapping around.

    The published Algorithm 1 shifts its mask inside the loop, which compounds; the text and the worked example
    (P=8, S=4, t=1: {0,1,4,5} {2,3,6,7}) need one shift per phase, as here.
    """
    phases = world_size.bit_length() - 1
    bits = [1 << ((first + i) % phases) for i in range(group_size.bit_length() - 1)]
    base = rank
    for bit in bits:
        base &= ~bit
    # Leaf index i has bit j set where the member differs from the base in phase j: association in phase order.
    return tuple(base | sum(bit for j, bit in enumerate(bits) if i >> j & 1) for i in range(group_size))


@lru_cache(maxsize=64)
def _riffles(world_size: int, groups: int, group_size: int) -> tuple[tuple[Group, Group], ...]:
    """(order, position) after 0, 1, 2, ... riffles into `groups` piles; order[position[rank]] == rank."""
    table = []
    order = tuple(range(world_size))
    for _ in range(max(1, ceil_log(world_size, max(2, group_size)))):
        position = [0] * world_size
        for place, rank in enumerate(order):
            position[rank] = place
        table.append((order, tuple(position)))
        order = tuple(order[i] for pile in range(groups) for i in range(pile, world_size, groups))
    return tuple(table)


def _riffle_group(world_size: int, group_size: int, iteration: int, rank: int) -> Group:
    groups = -(-world_size // group_size)
    table = _riffles(world_size, groups, group_size)
    order, position = table[iteration % len(table)]
    rotation = iteration % world_size
    place = (position[rank] - rotation) % world_size
    # The first `larger` groups have size+1 members, the others size: sizes differ by at most one.
    size, larger = divmod(world_size, groups)
    cut = larger * (size + 1)
    if place < cut:
        start = place // (size + 1) * (size + 1)
        length = size + 1
    else:
        start = cut + (place - cut) // size * size
        length = size
    return tuple(order[(start + i + rotation) % world_size] for i in range(length))


def group_of(world_size: int, group_size: int, iteration: int, rank: int) -> Group:
    """The group of `rank` in `iteration`, in association order (W section 3; riffle where that is undefined)."""
    if is_power_of_two(world_size) and is_power_of_two(group_size):
        phases = world_size.bit_length() - 1
        first = iteration * (group_size.bit_length() - 1) % phases if phases else 0
        return _butterfly_group(world_size, group_size, first, rank)
    return _riffle_group(world_size, group_size, iteration, rank)


@lru_cache(maxsize=16)
def everyone(world_size: int) -> Group:
    """The group of a sync: all ranks."""
    return tuple(range(world_size))


def all_groups(world_size: int, group_size: int, iteration: int) -> list[Group]:
    """The disjoint groups of an iteration, which together cover all ranks; ordered by their lowest rank."""
    seen: set[int] = set()
    groups = []
    for rank in range(world_size):
        if rank not in seen:
            group = group_of(world_size, group_size, iteration, rank)
            seen.update(group)
            groups.append(group)
    return groups
