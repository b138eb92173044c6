"""Association trees, averaging, schedules and digests, on numbers small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wagma.core.averaging import mean, merge, merge_rule, pair_average, weighted, weighted_sum
from wagma.core.digest import digest
from wagma.core.schedule import Schedule
from wagma.core.trees import accumulation_dtype, association, tree_sum


def test_association_of_five() -> None:
    assert association(1) == ()
    assert association(5) == ((0, 1), (2, 3), (0, 2), (0, 4))


@pytest.mark.parametrize("leaves", range(1, 70))
def test_association_adds_every_leaf_once(leaves: int) -> None:
    partial = [{leaf} for leaf in range(leaves)]
    for into, source in association(leaves):
        assert not partial[into] & partial[source]
        assert max(partial[into]) < min(partial[source])  # neighbours: the order of leaves is kept
        partial[into] |= partial[source]
        partial[source] = set()
    assert partial[0] == set(range(leaves))


def test_powers_of_two_add_as_recursive_doubling_does() -> None:
    """After phase k, partial i holds the leaves that agree with i above bit k, on each of the members alike."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal(16).astype(np.float32) * np.float32(10.0) ** rng.integers(-6, 6, 16).astype(np.float32)
    ranks = values.copy()
    for phase in range(4):
        ranks = ranks + ranks[np.arange(16) ^ (1 << phase)]
    assert len(set(ranks.tolist())) == 1
    assert tree_sum([values[i : i + 1] for i in range(16)])[0] == ranks[0]


def test_tree_sum_is_not_the_sum_from_left_to_right() -> None:
    values = [np.array([v], np.float32) for v in (1e8, 1.0, -1e8, 1.0)]
    assert tree_sum(values)[0] == 0.0  # (1e8 + 1) + (-1e8 + 1), each rounded to a multiple of 8
    assert ((values[0] + values[1]) + values[2]) + values[3] == 1.0


def test_tree_sum_accumulates_in_float32_at_least_and_leaves_its_inputs() -> None:
    halves = [np.array([2048.0], np.float16), np.array([1.0], np.float16)]
    assert tree_sum(halves)[0] == 2049.0  # float16 has no 2049
    assert [h[0] for h in halves] == [2048.0, 1.0]
    alone = np.ones(2, np.float32)
    assert not np.shares_memory(tree_sum([alone]), alone)
    assert accumulation_dtype(np.float64) == np.float64
    assert accumulation_dtype(np.float16) == accumulation_dtype(np.float32) == np.float32


def test_merge_rule() -> None:
    assert merge_rule(1, 4) == (0, 4)
    assert merge_rule(0, 4) == (1, 5)
    assert merge_rule(0, 0) == (1, 1)
    weights, divisors = merge_rule(np.array([1, 0, 0]), np.array([4, 4, 0]))
    assert (weights.tolist(), divisors.tolist()) == ([0, 1, 1], [4, 5, 1])


def test_merge() -> None:
    own = np.array([3.0, 5.0], np.float32)
    total = np.array([10.0, 10.0], np.float32)
    assert merge(total, own, 1, 5).tolist() == [np.float32(13) / np.float32(5), 3.0]
    assert merge(total, own, 0, 4).tolist() == [2.5, 2.5]
    kept = merge(None, own, 1, 1)
    assert kept.tolist() == own.tolist()
    assert not np.shares_memory(kept, own)


def test_merge_does_not_touch_an_own_model_of_weight_zero() -> None:
    assert merge(np.array([4.0]), np.array([np.inf]), 0, 4).tolist() == [1.0]


def test_merge_with_weights() -> None:
    own = np.array([3.0, 0.1], np.float32)
    total = np.array([2.0, 0.7], np.float32)
    halves = merge(total, own, 0.5, 2)
    assert halves.dtype == np.float32
    assert halves.tolist() == [1.75, ((np.float32(0.7) + np.float32(0.1) * np.float32(0.5)) / np.float32(2)).item()]
    assert merge(total, own, 1.0, 5.0).tobytes() == merge(total, own, 1, 5).tobytes()
    # Nothing received: the own share alone, and of all of it every bit.
    assert merge(None, own, 0.5, 2).tolist() == [0.75, (np.float32(0.1) * np.float32(0.5) / np.float32(2)).item()]
    odd = np.array([np.nan, -0.0, 1e-45, 0.1], np.float32)
    assert merge(None, odd, 0.3, 0.3).tobytes() == odd.tobytes()
    assert merge(None, own, 0, 3).tolist() == [0, 0]


def test_weight_one_changes_no_bit() -> None:
    odd = np.array([np.nan, -0.0, 1e-45, 0.1, np.inf], np.float32)
    assert weighted(odd, 1.0).tobytes() == odd.tobytes()
    total = weighted_sum([odd], [1])
    assert total is not None
    assert total.tobytes() == odd.tobytes()


def test_weighted_sum_is_in_the_order_given_and_in_the_accumulation_type() -> None:
    values = [np.array([x], np.float32) for x in (1.0, 1e8, -1e8)]
    for order, expected in (([0, 1, 2], 0.0), ([1, 2, 0], 1.0)):
        total = weighted_sum([values[i] for i in order], [1, 1, 1])
        assert total is not None
        assert total.tolist() == [expected]
    thirds = weighted_sum([np.array([3.0]), np.array([6.0])], [0.25, 0.5])
    assert thirds is not None
    assert (thirds.dtype, thirds.tolist()) == (np.float64, [3.75])
    assert weighted_sum([], []) is None


def test_pairs_move_by_opposite_halves() -> None:
    """Also when the one that asked has moved since, by 10 here: that stays."""
    sent, partner = np.array([3.0], np.float32), np.array([6.0], np.float32)
    assert pair_average(partner, sent, partner).tolist() == [4.5]
    assert pair_average(sent + 10, partner, sent).tolist() == [14.5]


def test_merge_divides_and_does_not_multiply_by_a_reciprocal() -> None:
    total = np.arange(1, 200, dtype=np.float32)
    merged = merge(total, total, 0, 49)
    assert (merged == total / np.float32(49)).all()
    assert (merged != total * (np.float32(1) / np.float32(49))).any()


def test_mean() -> None:
    assert mean([np.array([1.0], np.float16), np.array([2.0], np.float16)]).tolist() == [1.5]
    assert mean([np.array([1.0], np.float16)]).dtype == np.float16


def test_schedule_with_groups() -> None:
    schedule = Schedule(8, 4, 3)
    assert schedule.first == 0
    assert [v for v in range(9) if schedule.is_sync(v)] == [2, 5, 8]
    assert [schedule.staleness_bound(v) for v in range(6)] == [1, 2, 0, 1, 2, 0]
    assert schedule.worst_staleness == 2
    assert schedule.group(3, 2) == tuple(range(8))
    assert schedule.group(3, 0) == (0, 1, 2, 3)
    assert (schedule.next(4), schedule.previous(4)) == (5, 3)


def test_schedule_of_syncs_only() -> None:
    schedule = Schedule(4, 1, 3, grouped=False)
    assert schedule.first == 2
    assert [schedule.next(v) for v in (-1, 0, 1, 2, 3, 5)] == [2, 2, 2, 5, 5, 8]
    assert schedule.previous(5) == 2
    assert schedule.previous(2) < 0


def test_schedule_without_syncs() -> None:
    schedule = Schedule(4, 2, 0)
    assert not any(schedule.is_sync(v) for v in range(100))
    assert schedule.staleness_bound(7) == 8
    assert schedule.worst_staleness is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 1, 0), "world_size = 0"),
        ((4, 0, 0), "group_size = 0"),
        ((4, 5, 0), "group_size = 5"),
        ((4, 2, -1), "sync_period = -1"),
        ((4, 2, 0, False), "sync_period = 0"),
    ],
)
def test_schedule_names_what_is_out_of_range(arguments: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Schedule(*arguments)  # type: ignore[arg-type]


def test_digest_tells_bits_lengths_and_places_apart() -> None:
    base = np.arange(10, dtype=np.float32)
    changed = base.copy()
    changed[3] = np.nextafter(changed[3], np.float32(9))
    swapped = base.copy()
    swapped[[0, 1, 2, 3]] = base[[2, 3, 0, 1]]  # whole 64-bit words change places
    variants: list[np.ndarray] = [base, changed, swapped, base[:-1], np.append(base, np.float32(0)), base.astype(np.float64)]
    assert len({digest(v) for v in variants}) == len(variants)
    assert digest(base) == digest(base.copy())
    assert digest(np.array([0.0])) != digest(np.array([-0.0]))


def test_digest_is_stable() -> None:
    """Traces are compared across versions of wagma: these values never change."""
    assert digest(np.zeros(0)) == "0000000000000000"
    assert digest(np.arange(5, dtype=np.uint8)) == "011ae0e506a03a2f"
    assert digest(np.arange(1000, dtype=np.float64)) == "2cb73fcf1ba5508d"


def test_syncs_alone_are_never_stale() -> None:
    schedule = Schedule(4, 1, 10, grouped=False)
    assert schedule.worst_staleness == 0 == schedule.staleness_bound(schedule.first)
