"""Tests of examples/own_algorithm.py in both worlds: python -m pytest examples/test_own_algorithm.py."""

import own_algorithm  # noqa: F401  which registers the algorithm
from hypothesis import given, settings

from wagma.testing import (
    Case,
    TugOfWar,
    assert_averages,
    assert_bounded_staleness,
    assert_distances,
    assert_nothing_lost,
    assert_promises,
    assert_synced,
    cases,
    run_real,
    run_simulated,
    straggling,
)
from wagma.testing.fixtures import run_anywhere  # noqa: F401

NAME = "fading_sgd"


@settings(deadline=None, max_examples=25)
@given(cases())
def test_any_lateness(case):
    """Ranks, groups, syncs and lateness are Hypothesis's; what fails is shrunk to the fewest and shortest delays."""
    run = run_simulated(NAME, case)
    assert_promises(run.trace)
    assert_averages(run)
    assert_nothing_lost(run)
    assert_synced(run)


@settings(deadline=None, max_examples=25)
@given(cases(syncs=True, merge_once=False))
def test_ranks_stay_together(case):
    """However late they are, and however their gradients pull them apart."""
    assert_distances(run_simulated(NAME, case, TugOfWar(case.ranks, case.iterations)))


def test_stragglers_in_either_world(run_anywhere):  # noqa: F811
    """Runs twice: in the simulator, and on real ranks, as threads."""
    run = run_anywhere(NAME, Case(ranks=4, iterations=30, group_size=2, sync_period=6, lateness=straggling(4, 30, seed=1)))
    assert any(record.fresh is False for record in run.trace.iterations)  # else nothing was tried
    assert_promises(run.trace)
    assert_averages(run)
    assert_nothing_lost(run)
    assert_bounded_staleness(run.trace, 5)


def test_both_worlds_compute_the_same_bits():
    """Who is late is not the same in both; what they make of equal models is."""
    case = Case(ranks=3, iterations=20, sync_period=5, merge_once=True)
    assert_promises(run_real(NAME, case).trace, run_simulated(NAME, case).trace)
