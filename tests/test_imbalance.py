"""Draws and delays: the same everywhere, and distributed as they say."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wagma.draws import bits, open_interval, uniform
from wagma.errors import InputError
from wagma.sections import Section
from wagma.timing.compute import read_compute
from wagma.timing.imbalance import Times, read_imbalance, to_nanoseconds


def times(ranks: int, seed: int = 1, imbalance: list[dict[str, Any]] | None = None) -> Times:
    compute = read_compute(Section("test", "compute", {"kind": "constant", "seconds": 1.0}))
    sections = [read_imbalance(Section("test", "imbalance", table), ranks) for table in imbalance or []]
    return Times(ranks, seed, compute, tuple(sections))


def delays(world_size: int, iterations: int, seed: int = 1, **imbalance: Any) -> Any:
    """Delays in seconds, [iteration, rank], of one section."""
    t = times(world_size, seed, [{"delay_s": 1.0, **imbalance}])
    return np.array([t.delay_ns(i) for i in range(iterations)]) * 1e-9


def test_draws_do_not_depend_on_who_asks() -> None:
    """Rank 3's draw is one number, with 4 ranks or 400, alone or among others."""
    everyone = uniform(7, "delay", np.arange(400), 12)
    assert uniform(7, "delay", np.arange(4), 12)[3] == everyone[3]
    assert uniform(7, "delay", np.array([3]), 12)[0] == everyone[3]


def test_draws_are_stable_across_versions() -> None:
    """Recorded once: a change of these numbers changes every published result."""
    assert [int(b) for b in bits(2021, "compute", np.arange(3), 5)] == [
        9160260112565467712,
        16644155791170718567,
        4177924353905311740,
    ]


@pytest.mark.parametrize("other", [(8, "delay", 12), (7, "other", 12), (7, "delay", 13)])
def test_seed_purpose_and_iteration_all_matter(other: tuple[int, str, int]) -> None:
    seed, purpose, iteration = other
    assert not np.any(uniform(7, "delay", np.arange(100), 12) == uniform(seed, purpose, np.arange(100), iteration))


def test_uniform_draws_are_uniform_and_inside_the_open_interval() -> None:
    draws = np.concatenate([uniform(3, "x", np.arange(1000), t) for t in range(20)])
    assert draws.min() > 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


def test_the_extreme_words_stay_inside_the_open_interval() -> None:
    extremes = open_interval(np.array([0, 2**64 - 1], np.uint64))
    assert 0 < extremes[0] < extremes[1] < 1


def test_independent_delays_hit_with_the_probability_of_the_authors_program() -> None:
    t = times(64, imbalance=[{"kind": "independent", "draws": 2, "delay_s": 0.32}])
    hits = np.array([np.count_nonzero(t.delay_ns(i)) for i in range(3000)])
    expected = 64 * (1 - (1 - 1 / 64) ** 2)
    assert hits.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / 3000))
    assert hits.min() == 0
    assert hits.max() >= 4


def test_exactly_k_distinct_ranks_all_alike() -> None:
    t = times(8, imbalance=[{"kind": "exactly", "count": 2, "delay_s": 0.5}])
    delays = np.array([t.delay_ns(i) for i in range(2000)])
    assert set(np.count_nonzero(delays, axis=1)) == {2}
    assert np.count_nonzero(delays, axis=0) == pytest.approx(np.full(8, 500), rel=0.2)


def test_sections_add_up() -> None:
    both = [{"kind": "exactly", "count": 4, "delay_s": 0.5}, {"kind": "exactly", "count": 4, "delay_s": 0.25}]
    assert set(times(4, imbalance=both).delay_ns(0)) == {750_000_000}


def test_more_ranks_asked_for_than_there_are_delays_all() -> None:
    assert np.count_nonzero(times(1, imbalance=[{"kind": "exactly", "count": 2, "delay_s": 1}]).delay_ns(0)) == 1


def test_linear_skew_goes_from_none_to_all_of_the_delay() -> None:
    assert delays(5, 3, kind="linear", delay_s=0.8) == pytest.approx(np.tile([0, 0.2, 0.4, 0.6, 0.8], (3, 1)))
    assert delays(1, 1, kind="linear").tolist() == [[0.0]]


def test_shuffled_skew_deals_the_same_delays_out_anew() -> None:
    drawn = delays(5, 2000, kind="linear", delay_s=0.8, shuffled=True)
    assert np.sort(drawn, axis=1) == pytest.approx(np.tile([0, 0.2, 0.4, 0.6, 0.8], (2000, 1)))
    assert drawn.mean(axis=0) == pytest.approx(np.full(5, 0.4), abs=4 * 0.283 / np.sqrt(2000))
    assert len(np.unique(drawn, axis=0)) == 120  # every permutation of five


def test_given_ranks_are_slow_in_every_iteration() -> None:
    assert delays(4, 3, kind="fixed", ranks=[3, 1], delay_s=0.5) == pytest.approx(np.tile([0, 0.5, 0, 0.5], (3, 1)))
    assert not delays(4, 3, kind="fixed", ranks=[]).any()


def test_ranks_drawn_once_stay_slow_and_depend_on_the_seed() -> None:
    slow = set()
    for seed in range(40):
        drawn = delays(6, 20, seed, kind="fixed", count=2)
        assert np.unique(drawn, axis=0).shape == (1, 6)
        assert np.count_nonzero(drawn[0]) == 2
        slow.add(tuple(np.flatnonzero(drawn[0])))
    assert len(slow) > 8  # of 15 pairs
    assert delays(2, 1, kind="fixed", count=5).all()


def test_bursts_delay_as_often_as_documented_from_the_first_iteration_on() -> None:
    """f = 1 - (1 - p)^length, and (1 - q) / (p q) iterations on end with q = (1 - p)^length."""
    p, length = 0.02, 10
    f = 1 - (1 - p) ** length
    drawn = delays(2000, 300, kind="burst", probability=p, length=length) > 0
    assert drawn[0].mean() == pytest.approx(f, abs=4 * np.sqrt(f * (1 - f) / 2000))
    assert drawn.mean() == pytest.approx(f, abs=4 * np.sqrt(length * f * (1 - f) / drawn.size))
    runs = burst_lengths(drawn)
    assert min(runs) == length
    # Runs cut off at the end of the record are missing, a little more often the long ones.
    assert np.mean(runs) == pytest.approx(f / (p * (1 - f)), rel=0.05)


def burst_lengths(delayed: Any) -> list[int]:
    """How many iterations on end a rank is delayed, for all that begin and end within the record."""
    found = []
    for rank in delayed.T:
        edges = np.flatnonzero(np.diff(rank.astype(int)))
        found += [int(end - start) for start, end in pairwise(edges) if rank[start + 1]]
    return found


def test_a_burst_of_one_iteration_is_an_independent_delay() -> None:
    one, independent = ({"kind": "burst", "length": 1}, {"kind": "independent"})
    assert np.array_equal(*(delays(50, 50, probability=0.3, **section) for section in (one, independent)))


EVERY_KIND: list[dict[str, Any]] = [
    {"kind": "independent", "probability": 0.5},
    {"kind": "exactly", "count": 3},
    {"kind": "linear"},
    {"kind": "linear", "shuffled": True},
    {"kind": "fixed", "ranks": [0, 2]},
    {"kind": "fixed", "count": 3},
    {"kind": "burst", "probability": 0.1, "length": 5},
]


@given(st.sampled_from(EVERY_KIND), st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(5, 30))
@settings(deadline=None, max_examples=60)
def test_delays_are_a_function_of_seed_rank_and_iteration(
    section: dict[str, Any], seed: int, iteration: int, ranks: int
) -> None:
    """Whoever asks, in whatever order; and where a rank is not compared with the others, whatever their number."""
    table = {"delay_s": 0.5, **section}
    first, second = times(ranks, seed, [table]), times(ranks, seed, [table])
    second.delay_ns(iteration + 3)
    asked = first.delay_ns(iteration).tolist()
    assert asked == second.delay_ns(iteration).tolist()
    if section["kind"] in ("independent", "burst") or "ranks" in section:
        assert asked == times(40, seed, [table]).delay_ns(iteration)[:ranks].tolist()


def test_two_sections_alike_draw_apart() -> None:
    table = {"kind": "independent", "probability": 0.5, "delay_s": 1.0}
    assert set(times(100, imbalance=[table, table]).delay_ns(0)) == {0, 1_000_000_000, 2_000_000_000}


def test_delays_of_earlier_kinds_are_those_of_earlier_versions() -> None:
    """Published results hang on them: the purpose is the number of the section, one uniform for each rank."""
    table = {"kind": "independent", "probability": 0.3, "delay_s": 1.0}
    drawn = times(100, imbalance=[table, {"kind": "exactly", "count": 7, "delay_s": 2.0}]).delay_ns(9)
    independent = uniform(1, "imbalance.0", np.arange(100), 9) < 0.3
    exactly = np.isin(np.arange(100), np.argsort(uniform(1, "imbalance.1", np.arange(100), 9))[:7])
    assert drawn.tolist() == (1_000_000_000 * independent + 2_000_000_000 * exactly).tolist()


def test_rounding_is_half_to_even() -> None:
    assert to_nanoseconds(np.array([0.5e-9, 1.5e-9, 2.5e-9])).tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    ("imbalance", "complaint"),
    [
        ({"kind": "independent", "delay_s": -0.1, "probability": 0.5}, "delay_s = -0.1"),
        ({"kind": "independent", "delay_s": 0.1, "probability": 1.5}, "at most 1"),
        ({"kind": "independent", "delay_s": 0.1}, "probability: missing"),
        ({"kind": "independent", "delay_s": 0.1, "probability": 0.5, "draws": 2}, "either probability or draws"),
        ({"kind": "exactly", "delay_s": 0.1, "count": 1.5}, "whole number"),
        ({"kind": "exactly", "delay_s": 0.1, "count": 1, "rank": 2}, "unknown key"),
        ({"kind": "exactly", "delay_s": float("inf"), "count": 1}, "finite number"),
        ({"kind": "exactly", "delay_s": 1e10, "count": 1}, "at most 1e+09"),
        ({"kind": "chaos", "delay_s": 0.1}, "must be one of independent, exactly, linear, fixed, burst"),
        ({"kind": "linear"}, "imbalance[0].delay_s: missing"),
        ({"kind": "linear", "delay_s": 0.1, "shuffled": 1}, "imbalance[0].shuffled = 1: must be true or false"),
        ({"kind": "linear", "delay_s": 0.1, "count": 1}, "unknown key; allowed: kind, delay_s, shuffled"),
        ({"kind": "fixed", "delay_s": 0.1}, "imbalance[0].count: missing"),
        ({"kind": "fixed", "delay_s": 0.1, "count": -1}, "imbalance[0].count = -1: must be a whole number, at least 0"),
        ({"kind": "fixed", "delay_s": 0.1, "count": 1, "ranks": [1]}, "imbalance[0].count = 1: give either ranks or count"),
        ({"kind": "fixed", "delay_s": 0.1, "ranks": 1}, "imbalance[0].ranks = 1: must be an array of different whole numbers"),
        ({"kind": "fixed", "delay_s": 0.1, "ranks": [4]}, "ranks = [4]: must be an array of different whole numbers from 0 to 3"),
        ({"kind": "fixed", "delay_s": 0.1, "ranks": [-1]}, "imbalance[0].ranks = [-1]"),
        ({"kind": "fixed", "delay_s": 0.1, "ranks": [1.0]}, "imbalance[0].ranks = [1.0]"),
        ({"kind": "fixed", "delay_s": 0.1, "ranks": [True]}, "imbalance[0].ranks = [True]"),
        ({"kind": "fixed", "delay_s": 0.1, "ranks": [1, 1]}, "imbalance[0].ranks = [1, 1]"),
        ({"kind": "burst", "delay_s": 0.1, "length": 3}, "imbalance[0].probability: missing"),
        ({"kind": "burst", "delay_s": 0.1, "probability": -0.1, "length": 3}, "imbalance[0].probability = -0.1"),
        ({"kind": "burst", "delay_s": 0.1, "probability": 0.1}, "imbalance[0].length: missing"),
        ({"kind": "burst", "delay_s": 0.1, "probability": 0.1, "length": 0}, "length = 0: must be a whole number, at least 1"),
        ({"kind": "burst", "delay_s": 0.1, "probability": 0.1, "length": 10_001}, "at most 10000"),
    ],
)  # fmt: skip
def test_bad_imbalance_is_one_line(imbalance: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)) as caught:
        read_imbalance(Section("file.toml", "imbalance[0]", imbalance), 4)
    assert "\n" not in str(caught.value)
