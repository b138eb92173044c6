"""wagma.testing drives registered algorithms in both worlds, and its assertions catch broken ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from wagma.algorithms import ALGORITHMS, Collectives, register
from wagma.core.effects import Allreduce, ApplyUpdate, Average, ComputeGradient, GroupAllreduce, RankView, Value
from wagma.errors import InputError, MissingDependencyError, WagmaError
from wagma.testing import (
    Case,
    Ledger,
    LogCosh,
    Observed,
    TugOfWar,
    assert_averages,
    assert_bounded_staleness,
    assert_nothing_lost,
    assert_promises,
    assert_synced,
    cases,
    run_real,
    run_simulated,
    straggling,
)
from wagma.testing.fixtures import Runner, forgotten_algorithms, run_anywhere  # noqa: F401

pytest.importorskip("torch")
pytest.importorskip("wagma._native")
pytestmark = pytest.mark.usefixtures("forgotten_algorithms")

LATE = Case(ranks=4, iterations=24, group_size=2, sync_period=6, seed=3)


# -- what wagma comes with -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [*ALGORITHMS])
def test_algorithms_of_wagma_keep_all_that_is_asked(algorithm: str, run_anywhere: Runner) -> None:  # noqa: F811
    run = run_anywhere(algorithm, LATE)
    assert not np.isnan(run.models).any()
    assert_promises(run.trace)
    assert_averages(run)
    assert_nothing_lost(run)
    if run.trace.header.value == "model" and run.trace.executions:
        assert_synced(run)
    if algorithm not in ("ad_psgd", "swarm_sgd"):
        assert_bounded_staleness(run.trace, 5)


@settings(deadline=None, max_examples=40)
@given(cases())
def test_any_case_keeps_all_that_is_asked(case: Case) -> None:
    run = run_simulated("wagma_sgd", case)
    assert_promises(run.trace)
    assert_averages(run)
    assert_nothing_lost(run)
    assert_synced(run)


def test_the_lateness_asked_for_is_the_lateness_had(run_anywhere: Runner) -> None:  # noqa: F811
    """Only the iterations that straggle are late, and a rank that sleeps for long is executed meanwhile."""
    late = [[1] * 12 for _ in range(3)]
    late[1][4] = 2000
    run = run_anywhere("wagma_sgd", Case(3, 12, 3, "never", lateness=late))
    passive = {(e.rank, e.version) for e in run.trace.executions if e.own_stamp < e.version and e.rank == 1}
    assert {(1, version) for version in range(4, 12)} <= passive
    assert next(a for a in run.trace.iterations if (a.rank, a.iteration) == (1, 4)).merged_version == 11


def test_both_worlds_give_the_same_bits_where_nobody_can_be_late() -> None:
    case = Case(3, 10, sync_period=2)
    for problem in (None, LogCosh(3, 0.3), TugOfWar(3, 10, 0.1, share=0.5)):
        simulated, real = (run("local_sgd", case, problem) for run in (run_simulated, run_real))
        np.testing.assert_array_equal(real.models, simulated.models)
        np.testing.assert_array_equal(real.updated, simulated.updated)


def test_a_ledger_says_what_is_in_a_model() -> None:
    """Two ranks, the second one late in iteration 1: by hand."""
    run = run_simulated("wagma_sgd", Case(2, 3, 2, 3, lateness=[[10, 10, 10], [10, 15, 10]]))
    ledger = run.problem
    assert isinstance(ledger, Ledger)
    first, second = (ledger.place(rank, 1) for rank in range(2))
    # Rank 1 had published its update of iteration 0 when rank 0 came to iteration 1.
    assert run.models[0, 1, [0, first, second]].tolist() == [1, 0.5, 0]
    # It came late: (sum + own) / 3.
    np.testing.assert_allclose(run.models[1, 1, [0, first, second]], [1, 1 / 3, 1 / 3])
    assert run.models[0, 2].tolist() == run.models[1, 2].tolist()


def test_the_same_case_is_the_same_run() -> None:
    first, again = (run_simulated("wagma_sgd", LATE, LogCosh(4, 0.1)) for _ in range(2))
    other = run_simulated("wagma_sgd", Case(4, 24, 2, 6, seed=4), LogCosh(4, 0.1))
    assert first.models.tobytes() == again.models.tobytes()
    assert first.models.tobytes() != other.models.tobytes()
    assert straggling(4, 24, 3) != straggling(4, 24, 4)


# -- broken ones -----------------------------------------------------------------------------------------------------------------


def wrong_weights(rank: RankView) -> Any:
    """A late rank leaves its own model out, but counts it."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if rank.schedule.is_sync(t):
            yield Allreduce(t, Value.MODEL)
        else:
            outcome = yield GroupAllreduce(t, Value.MODEL)
            yield Average(t, 0, outcome.group_length + 1 - outcome.fresh)


def loses_updates(rank: RankView) -> Any:
    """A late rank takes the mean of the others."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if rank.schedule.is_sync(t):
            yield Allreduce(t, Value.MODEL)
        else:
            outcome = yield GroupAllreduce(t, Value.MODEL)
            yield Average(t, 0, outcome.group_length)


def updates_twice(rank: RankView) -> Any:
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        yield ApplyUpdate(t)
        yield Allreduce(t, Value.MODEL)


def extrapolates(rank: RankView) -> Any:
    """W = 2 W' - mean: weights that add up to 1, half of them the wrong way."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        outcome = yield GroupAllreduce(t, Value.MODEL)
        yield Average(t, -2 * outcome.group_length, -outcome.group_length)


@pytest.mark.parametrize(
    ("algorithm", "kind", "shape", "check", "complaint"),
    [
        (wrong_weights, Collectives.GROUPED, (4, 24, 4, 6), assert_averages, r"of the initial model is 0\.\d+, expected 1"),
        (
            loses_updates,
            Collectives.GROUPED,
            (4, 24, 4, 6),
            assert_nothing_lost,
            r"rank \d, .*: its own update is not in its model",
        ),
        (
            updates_twice,
            Collectives.EVERY,
            (1, 4, 1, 2),
            assert_averages,
            r"of rank 0 in iteration \d has the weight 2, .*at most 1",
        ),
        (extrapolates, Collectives.GROUPED, (4, 3, 4, "never"), assert_averages, r"has the weight -\S+, expected none below 0"),
    ],
)
def test_broken_averages_are_caught(
    algorithm: Callable[[RankView], Any],
    kind: Collectives,
    shape: tuple[Any, ...],
    check: Callable[[Observed], None],
    complaint: str,
    run_anywhere: Runner,  # noqa: F811
) -> None:
    register("broken", kind)(algorithm)
    run = run_anywhere("broken", Case(*shape, seed=3))
    with pytest.raises(AssertionError, match=complaint) as caught:
        check(run)
    assert "violations" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 10


def skips_a_version(rank: RankView) -> Any:
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if t != 3:
            outcome = yield GroupAllreduce(t, Value.MODEL)
            yield Average(t, 1 - outcome.fresh, outcome.group_length + 1 - outcome.fresh)


def never_averages(rank: RankView) -> Any:
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        yield GroupAllreduce(t, Value.MODEL)


def joins_without_registering(rank: RankView) -> Any:
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)


@pytest.mark.parametrize(
    ("algorithm", "complaint"),
    [(skips_a_version, "the next version is 3"), (never_averages, "the last result is still being merged")],
)
def test_a_broken_order_is_refused(algorithm: Callable[[RankView], Any], complaint: str, run_anywhere: Runner) -> None:  # noqa: F811
    register("broken", Collectives.GROUPED)(algorithm)
    with pytest.raises(WagmaError, match=complaint):
        run_anywhere("broken", Case(3, 8, 3, "never"))


def test_a_version_that_nobody_joins_is_promise_1(run_anywhere: Runner) -> None:  # noqa: F811
    register("broken", Collectives.GROUPED)(joins_without_registering)
    run = run_anywhere("broken", Case(3, 8, 3, "never"))
    with pytest.raises(AssertionError, match=r"promise 1.*fresh = None, expected true or false"):
        assert_promises(run.trace)


def test_unbounded_staleness_is_caught(run_anywhere: Runner) -> None:  # noqa: F811
    """Of collectives without syncs, and of pairs."""
    late = [[1] * 20, [1000] + [1] * 19]
    for algorithm, where in (("wagma_sgd", "version"), ("swarm_sgd", "exchange")):
        run = run_anywhere(algorithm, Case(2, 20, 2, "never", lateness=late))
        with pytest.raises(
            AssertionError, match=rf"staleness of at most 3: \d+ violations\nrank \d, {where} \d+: staleness [4-9]"
        ):
            assert_bounded_staleness(run.trace, 3)
        assert_bounded_staleness(run.trace, 20)


# -- bad input -------------------------------------------------------------------------------------------------------------------


class NoModel(Ledger):
    def initial(self) -> Any:
        return np.zeros((2, 2), np.int64)


@pytest.mark.parametrize(
    ("case", "problem", "complaint"),
    [
        (
            Case(3, 4, lateness=[[1] * 4] * 2),
            None,
            r"lateness = 2 rows of \[4\] numbers: must be a row of 4 for each of 3 ranks",
        ),
        (Case(1, 2, lateness=[[1, -1]]), None, "lateness: -1 ticks: must be at least 0"),
        (Case(2, 2, group_size=3), None, "algorithm.group_size = 3: must be"),
        (Case(2, 2, settings={"colour": 1}), None, "colour"),
        (Case(2, 2), NoModel(2, 2), r"NoModel.initial\(\) = int64 of shape \(2, 2\): must be float32 or float64"),
    ],
)
def test_bad_cases_are_one_line(case: Case, problem: Ledger | None, complaint: str, run_anywhere: Runner) -> None:  # noqa: F811
    with pytest.raises(InputError, match=complaint) as caught:
        run_anywhere("wagma_sgd", case, problem)
    assert "\n" not in str(caught.value)


def test_without_torch_only_real_ranks_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wagma.testing.runs.find_spec", lambda name: None)
    assert_promises(run_simulated("wagma_sgd", LATE).trace)
    with pytest.raises(MissingDependencyError, match=r"^run_real needs torch: pip install torch \(docs/install.md\)$"):
        run_real("wagma_sgd", LATE)


def test_what_needs_a_ledger_says_so() -> None:
    run = run_simulated("wagma_sgd", LATE, LogCosh(4, 0.1))
    for check in (assert_averages, assert_nothing_lost, assert_synced):
        with pytest.raises(InputError, match="problem = LogCosh: must be a Ledger"):
            check(run)
    with pytest.raises(InputError, match=r"signs of shape \(1, 2\): must be -1 to 1, of shape \(2, 2\)"):
        TugOfWar(2, 2, signs=np.zeros((1, 2)))
    with pytest.raises(InputError, match="share = 0: must be above 0"):
        TugOfWar(2, 2, share=0)
