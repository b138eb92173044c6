"""Groups partition the ranks, are even, and mix as fast as promised; every world size to 64, samples beyond."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wagma.core.groups import (
    all_groups,
    ceil_log,
    group_of,
    is_power_of_two,
    propagation_bound,
    sqrt_group_size,
)


def check_partition(world_size: int, group_size: int, iteration: int) -> None:
    groups = all_groups(world_size, group_size, iteration)
    assert sorted(rank for group in groups for rank in group) == list(range(world_size))
    assert len(groups) == -(-world_size // group_size)
    sizes = {len(group) for group in groups}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= group_size


def period(world_size: int, group_size: int) -> int:
    """Iterations after which the groups repeat: phases of the butterfly; orders times rotations of the riffle."""
    if is_power_of_two(world_size) and is_power_of_two(group_size):
        return max(1, world_size.bit_length() - 1)
    return world_size * max(1, ceil_log(world_size, max(2, group_size)))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", range(1, 65))
def test_groups_partition_the_ranks(world_size: int) -> None:
    for group_size in range(1, world_size + 1):
        for iteration in range(min(period(world_size, group_size), 12)):
            check_partition(world_size, group_size, iteration)
            for group in all_groups(world_size, group_size, iteration):
                assert all(group_of(world_size, group_size, iteration, rank) == group for rank in group)


def spread(world_size: int, groups: list[list[tuple[int, ...]]], start: int) -> int:
    """Iterations from `start` until every rank has (a share of) every rank's update; `groups` repeats."""
    reached = [1 << rank for rank in range(world_size)]
    everything = (1 << world_size) - 1
    iterations = 0
    while any(mask != everything for mask in reached):
        assert iterations <= 4 * world_size, "never reaches all ranks"
        for group in groups[(start + iterations) % len(groups)]:
            union = 0
            for rank in group:
                union |= reached[rank]
            for rank in group:
                reached[rank] = union
        iterations += 1
    return iterations


@pytest.mark.slow
@pytest.mark.parametrize("world_size", range(2, 65))
def test_updates_reach_everyone_within_the_bound(world_size: int) -> None:
    check_propagation(world_size, 1 if world_size <= 24 else 7)


@pytest.mark.long
@pytest.mark.parametrize("world_size", range(25, 65))
def test_updates_reach_everyone_within_the_bound_from_every_iteration(world_size: int) -> None:
    check_propagation(world_size, 1)


def check_propagation(world_size: int, stride: int) -> None:
    """Starts from every `stride`-th iteration of the whole period."""
    for group_size in range(2, world_size + 1):
        butterfly = is_power_of_two(world_size) and is_power_of_two(group_size)
        bound = propagation_bound(world_size, group_size)
        assert bound is not None
        groups = [all_groups(world_size, group_size, t) for t in range(period(world_size, group_size))]
        needed = [spread(world_size, groups, start) for start in range(0, len(groups), stride)]
        if butterfly:
            assert set(needed) == {bound}
        else:
            assert max(needed) <= bound


def test_propagation_without_groups() -> None:
    assert propagation_bound(1, 1) == 0
    assert propagation_bound(8, 1) is None
    assert propagation_bound(8, 8) == 1
    assert propagation_bound(64, 8) == 2


def test_worked_example_of_the_paper() -> None:
    """W section 3: P = 8, S = 4; the second iteration continues with the phase at which the first one stopped."""
    assert [set(g) for g in all_groups(8, 4, 0)] == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert [set(g) for g in all_groups(8, 4, 1)] == [{0, 1, 4, 5}, {2, 3, 6, 7}]
    assert [set(g) for g in all_groups(8, 4, 2)] == [{0, 2, 4, 6}, {1, 3, 5, 7}]
    assert all_groups(8, 4, 3) == all_groups(8, 4, 0)


def test_association_order_is_the_order_of_phases() -> None:
    """P = 8, S = 4, t = 1 meets bit 2 first, then bit 0 again: leaf 1 differs in bit 2, leaf 2 in bit 0."""
    assert group_of(8, 4, 1, 5) == (0, 4, 1, 5)
    assert group_of(8, 2, 1, 7) == (5, 7)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_groups_partition_large_worlds(data: st.DataObject) -> None:
    world_size = data.draw(st.integers(65, 4000), "world_size")
    group_size = data.draw(st.integers(1, world_size), "group_size")
    iteration = data.draw(st.integers(0, 10**6), "iteration")
    check_partition(world_size, group_size, iteration)


@given(st.integers(6, 12), st.data())
@settings(max_examples=30, deadline=None)
def test_large_butterflies_mix_exactly_in_time(log_world: int, data: st.DataObject) -> None:
    log_group = data.draw(st.integers(1, log_world), "log2 of the group size")
    start = data.draw(st.integers(0, 1000), "start")
    world_size, group_size = 1 << log_world, 1 << log_group
    groups = [all_groups(world_size, group_size, t) for t in range(period(world_size, group_size))]
    assert spread(world_size, groups, start) == propagation_bound(world_size, group_size)


@pytest.mark.parametrize(
    ("world_size", "group_size"), [(1, 1), (4, 2), (8, 4), (16, 4), (32, 8), (64, 8), (6, 2), (7, 3), (12, 3), (13, 4)]
)
def test_sqrt_group_size(world_size: int, group_size: int) -> None:
    assert sqrt_group_size(world_size) == group_size


@given(st.integers(1, 10**9), st.integers(2, 100))
def test_ceil_log_is_exact(n: int, base: int) -> None:
    k = ceil_log(n, base)
    assert base**k >= n
    assert k == 0 or base ** (k - 1) < n


def test_consecutive_groups_differ() -> None:
    """A riffle that mixed nothing would keep every bound of a single group."""
    for first, second in pairwise(range(4)):
        assert all_groups(12, 3, first) != all_groups(12, 3, second)
