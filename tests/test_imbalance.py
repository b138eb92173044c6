"""Draws, compute times and delays: the same everywhere, and distributed as they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from wagma.draws import bits, seed_for, uniform
from wagma.errors import InputError
from wagma.imbalance import Times, read_compute, read_imbalance, to_nanoseconds
from wagma.sections import Section


def times(ranks: int, seed: int = 1, imbalance: list[dict[str, Any]] | None = None, **compute: Any) -> Times:
    compute = compute or {"kind": "constant", "seconds": 1.0}
    sections = [read_imbalance(Section("test", "imbalance", table), ranks) for table in imbalance or []]
    return Times(ranks, seed, read_compute(Section("test", "compute", compute)), tuple(sections))


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


def test_seed_for_fits_a_generator() -> None:
    assert 0 <= seed_for(1, "torch", 5) < 2**32
    assert seed_for(1, "torch", 5) != seed_for(1, "torch", 6)


def test_scipy_distributions_go_through_their_inverse_cdf() -> None:
    t = times(4000, kind="scipy", distribution="lognorm", s=0.5, scale=0.3)
    seconds = t.compute_ns(0) * 1e-9
    assert stats.kstest(seconds, stats.lognorm(0.5, scale=0.3).cdf).pvalue > 0.01


def test_samples_are_resampled() -> None:
    t = times(3000, kind="samples", seconds=[0.3, 0.1, 0.2])
    values, counts = np.unique(t.compute_ns(4), return_counts=True)
    assert values.tolist() == [100_000_000, 200_000_000, 300_000_000]
    assert counts.min() > 900


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


def test_rounding_is_half_to_even() -> None:
    assert to_nanoseconds(np.array([0.5e-9, 1.5e-9, 2.5e-9])).tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    ("compute", "complaint"),
    [
        ({"kind": "scipy", "distribution": "norm", "scale": 1.0}, "can be negative"),
        ({"kind": "scipy", "distribution": "pareto", "b": 0.5, "scale": 1.0}, "no finite mean"),
        ({"kind": "scipy", "distribution": "nope"}, "continuous distribution in scipy.stats"),
        ({"kind": "scipy", "distribution": "lognorm"}, "compute.s: missing"),
        ({"kind": "samples", "seconds": []}, "non-empty array"),
        ({"kind": "samples", "seconds": [1.0, float("nan")]}, "non-empty array"),
        ({"kind": "constant", "seconds": -1}, "greater than 0"),
        ({"kind": "constant", "seconds": True}, "finite number"),
        ({"kind": "weibull"}, "must be one of constant, scipy, samples"),
    ],
)
def test_bad_compute_is_one_line(compute: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        read_compute(Section("file.toml", "compute", compute))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("file.toml: compute")


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
    ],
)
def test_bad_imbalance_is_one_line(imbalance: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        read_imbalance(Section("file.toml", "imbalance[0]", imbalance), 4)
    assert "\n" not in str(caught.value)
