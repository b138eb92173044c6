"""Ranks stay as close together as docs/convergence.md proves, whoever is late; runs that break the staleness bound do not; and the rate."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from wagma.core.schedule import Schedule
from wagma.errors import InputError
from wagma.testing import (
    Case,
    Distances,
    LogCosh,
    Reach,
    TugOfWar,
    assert_distances,
    assert_mean_square,
    assert_synced,
    cases,
    distances,
    fit_rate,
    measure_rate,
    run_real,
    run_simulated,
    worst_gradients,
)
from wagma.testing.convergence import mean_square_gradient

ROOT = Path(__file__).parent.parent
quick = settings(deadline=None, max_examples=25)
MODELS = ("wagma_sgd", "local_sgd")


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """tools/convergence.py."""
    spec = importlib.util.spec_from_file_location("study_of_convergence", ROOT / "tools" / "convergence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


# -- the problem -----------------------------------------------------------------------------------------------------------------


def test_the_constants_of_log_cosh_are_true() -> None:
    problem = LogCosh(3, 0.1, dimensions=4, examples=32)
    draw = np.random.default_rng(1)
    points = [3 * draw.normal(size=4) for _ in range(20)]
    for x, y in pairwise(points):
        step = np.linalg.norm(problem.full_gradient(x) - problem.full_gradient(y))
        assert step <= problem.smoothness * np.linalg.norm(x - y)
        for axis in np.eye(4):
            slope = (problem.loss(x + 1e-6 * axis) - problem.loss(x - 1e-6 * axis)) / 2e-6
            assert slope == pytest.approx(problem.full_gradient(x) @ axis, abs=1e-8)
    # Near the solutions every slope's derivative is nearly 1, so that the constant is the right one and no wild guess.
    calm = LogCosh(3, 0.1, dimensions=4, examples=32)
    calm.targets = np.zeros_like(calm.targets)
    along = max((calm.full_gradient(1e-3 * v) for v in np.eye(4)), key=lambda g: float(np.linalg.norm(g)))
    assert np.linalg.norm(along) / 1e-3 > 0.8 * calm.smoothness
    lengths = [np.linalg.norm(problem.gradient(r, t, x)) for r in range(3) for t in range(40) for x in points]
    assert max(lengths) <= problem.gradient_bound
    assert max(lengths) > 0.95 * problem.gradient_bound
    assert problem.gradient_rms < problem.gradient_bound


def test_gradients_of_log_cosh_are_drawn_around_the_true_ones() -> None:
    problem = LogCosh(2, 0.1, dimensions=3, examples=8)
    x = np.array([0.3, -1.0, 2.0])
    drawn = np.array([[problem.gradient(rank, t, x) for t in range(4000)] for rank in range(2)])
    error = problem.gradient_bound / 8000**0.5
    np.testing.assert_allclose(drawn.mean(axis=(0, 1)), problem.full_gradient(x), atol=4 * error)
    assert np.abs(drawn[0].mean(axis=0) - drawn[1].mean(axis=0)).max() > 8 * error  # each rank has an f of its own
    assert (drawn**2).sum(axis=2).mean(axis=1).max() <= problem.gradient_rms**2


# -- the bounds ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "group_size", "period", "model", "updated"),
    [(4, 2, 8, 10.5, 11.5), (4, 1, 8, 7, 8), (8, 4, 10, 11.25, 12.25), (3, 2, 8, 14, 15), (4, 4, 1, 0, 1), (1, 1, 5, 4, 5)],
)
def test_the_bounds_are_those_of_the_page(ranks: int, group_size: int, period: int, model: float, updated: float) -> None:
    reach = Reach.of(Schedule(ranks, group_size, period))
    assert (reach.model, reach.updated) == (model, updated)
    assert Distances.bounds(ranks, reach) == Distances(model, updated, 2 * (1 - 1 / ranks) * updated, updated)


def test_the_smallest_group_is_known() -> None:
    """Of any number of ranks in groups of any size, over many versions."""
    for ranks in range(1, 20):
        for size in range(1, ranks + 1):
            schedule = Schedule(ranks, size, 50)
            lengths = {len(schedule.group(rank, v)) for rank in range(ranks) for v in range(40)}
            assert Reach.of(schedule).model == pytest.approx(49 * (1 + (1 / min(lengths) if max(lengths) > 1 else 0)))


@quick
@given(cases(syncs=True, merge_once=False))
def test_no_lateness_parts_ranks_further_than_proved(case: Case) -> None:
    """Whatever the gradients: those that are worst for the very run, ranks that pull against each other, and a problem that learns."""
    worst = worst_gradients(run_simulated("wagma_sgd", case))
    run = run_simulated("wagma_sgd", case, worst.problem(learning_rate=0.25))
    assert_distances(run)
    deviations = np.abs(run.updated - run.updated.mean(axis=0))[worst.rank, worst.iteration, 0]
    assert deviations / 0.25 == pytest.approx(worst.mean)  # no gradients part that rank further, and these do
    for problem in (TugOfWar(case.ranks, case.iterations), LogCosh(case.ranks, 2.0, spread=10.0)):
        assert_distances(run_simulated("wagma_sgd", case, problem))


@pytest.mark.parametrize("algorithm", MODELS)
def test_bounds_are_reached_where_ranks_are_alone(algorithm: str) -> None:
    """Without groups, and with groups of one, the proved distance is the true one: not a hair may be missing."""
    case = Case(4, 20, 1, 5, lateness=[[1] * 20] * 4)  # who is late averages with an older model of its own
    run = run_simulated(algorithm, case, TugOfWar(4, 20, learning_rate=0.5))
    found = distances(run)
    assert found.updated == pytest.approx(5)
    assert found.rms == pytest.approx(5)
    worst = worst_gradients(run_simulated(algorithm, case))
    assert worst.mean == pytest.approx(Distances.bounds(4, Reach.of(run.schedule)).mean)


def test_distances_grow_with_learning_rate_and_sync_period() -> None:
    """Units are learning rates times M: the distance itself is proportional to both, and to the sync period where ranks are alone."""
    for period in (2, 4, 8):
        run = run_simulated("local_sgd", Case(4, 16, 1, period), TugOfWar(4, 16, learning_rate=0.125))
        assert np.linalg.norm(run.updated - run.updated.mean(axis=0), axis=2).max() == 0.125 * period


def test_real_ranks_stay_together() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("wagma._native")
    case = Case(4, 40, 2, 8, seed=2)
    run = run_real("wagma_sgd", case, TugOfWar(4, 40))
    assert sum(a.fresh is False for a in run.trace.iterations) > 10
    assert_distances(run)
    assert 1 < distances(run).mean < Distances.bounds(4, Reach.of(run.schedule)).mean
    with pytest.raises(AssertionError, match=r"model from the last sync's \S+, expected at most 7"):
        assert_distances(run_real("wagma_sgd", replace(case, group_size=1, sync_period="never"), TugOfWar(4, 40)), 8)


def test_the_bound_in_expectation() -> None:
    """Gradients that are seldom anything, and then ten times as long: the bound goes by their mean square, not by the longest."""
    case = Case(4, 40, 1, 8, lateness=[[1] * 40] * 4)
    runs = [run_simulated("wagma_sgd", case, TugOfWar(4, 40, 0.1, share=0.1, draws=draws)) for draws in range(10)]
    assert_mean_square(runs)
    for run in runs:
        assert_distances(run)
    longer = [run_simulated("wagma_sgd", replace(case, sync_period="never"), one.problem) for one in runs]
    with pytest.raises(AssertionError, match=r"iteration \d+: \S+, expected at most 64"):
        assert_mean_square(longer, 8)


# -- violations ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(9))
def test_a_violated_staleness_bound_breaks_the_bounds(study: Any, number: int) -> None:
    """Of what was published outliving one sync groups of two make too little; what is in the models shows it all the same."""
    violation = study.VIOLATIONS[number]
    run = study.violated(violation, seed=0)
    sound, hidden = violation.name == "none", violation.name.startswith("what was published") and violation.group_size > 1
    assert study.is_noticed(assert_distances, run) == (not sound and not hidden)
    if violation.ranks <= 8:
        assert study.is_noticed(assert_synced, study.violated(violation, seed=0, ledger=True)) == (not sound)


def test_all_violations_are_tested(study: Any) -> None:
    assert len(study.VIOLATIONS) == 9


def test_a_bound_that_is_not_proved_is_refused() -> None:
    for case, complaint in (
        (Case(2, 4, 2, "never"), "sync_period = never"),
        (Case(2, 4, 2, 2, merge_once=True), "merge_once = True"),
    ):
        with pytest.raises(InputError, match=complaint):
            assert_distances(run_simulated("wagma_sgd", case, TugOfWar(2, 4)))
    with pytest.raises(InputError, match="accumulate = True"):
        assert_distances(run_simulated("eager_sgd", Case(2, 4, 2, 2), TugOfWar(2, 4)))
    run = run_simulated("wagma_sgd", Case(2, 4, 2, 2))
    for check in (assert_distances, distances, mean_square_gradient, lambda run: assert_mean_square([run])):
        with pytest.raises(InputError, match="problem = Ledger: must"):
            check(run)
    with pytest.raises(InputError, match="problem = TugOfWar: must be a Ledger"):
        worst_gradients(run_simulated("wagma_sgd", Case(2, 4, 2, 2), TugOfWar(2, 4)))


# -- the rate --------------------------------------------------------------------------------------------------------------------


def test_a_rate_is_fitted_with_its_error() -> None:
    draw = np.random.default_rng(3)
    horizons = [2**n for n in range(6, 13)]
    exponents, hits = [], 0
    for _ in range(200):
        noise = np.exp(0.2 * draw.normal(size=(7, 3)))
        fit = fit_rate(horizons, 5.0 * np.array(horizons)[:, None] ** -0.5 * noise)
        exponents.append(fit.exponent)
        hits += abs(fit.exponent + 0.5) <= fit.error
    assert np.mean(exponents) == pytest.approx(-0.5, abs=0.01)
    assert 180 <= hits <= 199  # a 95 % interval
    for bad in (np.zeros((2, 2)), np.ones((3, 1)), np.ones((2, 1))):
        with pytest.raises(InputError, match="values of shape"):
            fit_rate([1, 2], bad)


def test_the_rate_with_random_lateness_is_about_that_of_sgd() -> None:
    """tools/convergence.py measures it up to 2^12; here few iterations, and a step that is too small for them as a counterexample."""
    case, horizons = Case(8, sync_period=10), [64, 256]
    good = fit_rate(horizons, measure_rate("wagma_sgd", case, horizons, [0, 1], factor=16.0))
    assert -0.65 < good.exponent < -0.35
    timid = fit_rate([16, 64], measure_rate("wagma_sgd", case, [16, 64], [0, 1], factor=0.1))
    assert timid.exponent > -0.1


@pytest.mark.long
def test_the_rate_up_to_4096_iterations() -> None:
    case, horizons = Case(8, sync_period=10), [2**n for n in range(7, 13)]
    fit = fit_rate(horizons, measure_rate("wagma_sgd", case, horizons, [0, 1], factor=8.0))
    assert abs(fit.exponent + 0.5) < 0.06 + fit.error


@pytest.mark.long
@settings(deadline=None, max_examples=1000)
@given(cases(max_ranks=9, max_iterations=30, longest=200, syncs=True, merge_once=False))
def test_no_lateness_of_many_parts_ranks_further(case: Case) -> None:
    worst = worst_gradients(run_simulated("wagma_sgd", case))
    assert_distances(run_simulated("wagma_sgd", case, worst.problem()))


@pytest.mark.long
def test_the_study_prints_its_tables(study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "rate.png"
    assert study.main(["--cases", "10", "--horizons", "16", "64", "--seeds", "2", "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "| 4, 1, 8 | 8.00 | 8.00 | 1.00 |" in printed
    assert "| exponent from 16 |" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
