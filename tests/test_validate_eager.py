"""Each checker fires, alone, on a trace of eager_sgd in which its promise is broken; arbitrary legal runs pass."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wagma.core.effects import Value
from wagma.core.protocol import NONE, Machine, Output
from wagma.core.symbols import symbol
from wagma.scenario import load
from wagma.sim.driver import simulate
from wagma.sim.numerics import Symbols
from wagma.testing import assert_promises, synthetic_trace
from wagma.trace import Execution, Iteration, Trace, load_trace
from wagma.validate import validate

RANKS, PERIOD, ITERATIONS = 6, 5, 40
OTHER = "0123456789abcdef"


@functools.cache
def synthetic() -> Trace:
    """Contents, arbitrary lateness, ranks that close early, one initiator."""
    trace = synthetic_trace(
        RANKS, 1, PERIOD, ITERATIONS, seed=3, close_early=True, algorithm="eager_sgd", initiators="majority"
    )
    assert_promises(trace)
    return trace


@functools.cache
def symbolic() -> Trace:
    changes = {"ranks": RANKS, "iterations": ITERATIONS, "algorithm.sync_period": PERIOD, "imbalance.0.delay_s": 0.2}
    scenario = load("digits", changes | {"algorithms.eager_sgd.initiators": 2})
    trace = simulate(scenario, "eager_sgd", Symbols(RANKS))
    assert_promises(trace)
    return trace


class Case:
    """A copy of a passing trace, with what mutations look for."""

    def __init__(self, base: Callable[[], Trace]) -> None:
        self.trace = copy.deepcopy(base())
        self.schedule = self.trace.schedule
        self.execution = {(e.rank, e.version): e for e in self.trace.executions}
        self.iteration = {(a.rank, a.iteration): a for a in self.trace.iterations}
        self.last: dict[int, int] = dict.fromkeys(range(RANKS), NONE)
        for a in self.trace.iterations:
            self.last[a.rank] = max(self.last[a.rank], a.iteration)

    def pick(self, wanted: Callable[[Execution], bool]) -> Execution:
        """The first execution of a group version beyond the first period that is `wanted`."""
        candidates = (e for e in self.trace.executions if not self.schedule.is_sync(e.version) and e.version > PERIOD)
        return next(filter(wanted, candidates))

    def join(self, wanted: Callable[[Iteration], bool]) -> Iteration:
        return next(filter(wanted, (a for a in self.trace.iterations if a.iteration > PERIOD)))

    def contribute(self, e: Execution, oldest: int, newest: int, digest: str | None) -> None:
        e.oldest_stamp, e.own_stamp, e.contribution_digest = oldest, newest, digest

    def later_null(self, e: Execution) -> Execution | None:
        """The rank's next execution, if it is one of a group version to which it contributed nothing."""
        after = self.execution.get((e.rank, e.version + 1))
        return after if after is not None and after.own_stamp == NONE else None


def several(e: Execution) -> bool:
    return e.oldest_stamp is not None and NONE < e.oldest_stamp < e.own_stamp


Mutation = Callable[[Case], object]
MUTATIONS: list[tuple[int, Mutation, Callable[[], Trace]]] = []


def breaks(promise: int, base: Callable[[], Trace] = synthetic) -> Callable[[Mutation], Mutation]:
    def add(mutation: Mutation) -> Mutation:
        MUTATIONS.append((promise, mutation, base))
        return mutation

    return add


@breaks(3)
def null_with_a_content(case: Case) -> None:
    case.pick(lambda e: e.own_stamp == NONE).contribution_digest = OTHER


@breaks(3)
def torn_sum_of_gradients(case: Case) -> None:
    case.pick(several).contribution_digest = OTHER


@breaks(3)
def only_the_newest_gradient(case: Case) -> None:
    e = case.pick(several)
    e.oldest_stamp = e.own_stamp


@breaks(3)
def a_gradient_contributed_twice(case: Case) -> None:
    """By the next version too, which the rank reached with nothing."""
    e = case.pick(lambda e: e.own_stamp != NONE and case.later_null(e) is not None and (e.version + 1) % PERIOD > 1)
    again = case.later_null(e)
    assert again is not None
    assert e.oldest_stamp is not None
    case.contribute(again, e.oldest_stamp, e.own_stamp, e.contribution_digest)


@breaks(3)
def a_stamp_missing(case: Case) -> None:
    case.pick(lambda e: e.own_stamp != NONE).oldest_stamp = None


@breaks(3)
def a_null_with_an_oldest_stamp(case: Case) -> None:
    case.pick(lambda e: e.own_stamp == NONE).oldest_stamp = 3


@breaks(3)
def a_sync_with_gradients(case: Case) -> None:
    e = next(e for e in case.trace.executions if case.schedule.is_sync(e.version))
    e.oldest_stamp = e.version - 1


@breaks(3)
def another_model_of_a_closed_rank(case: Case) -> None:
    e = next(e for e in case.trace.executions if case.schedule.is_sync(e.version) and e.version > case.last[e.rank])
    e.contribution_digest = OTHER


@breaks(3)
def not_taken_back(case: Case) -> None:
    case.join(lambda a: a.retracted_ns is not None).retracted_ns = None


@breaks(3)
def taken_back_what_a_version_had(case: Case) -> None:
    a = case.join(lambda a: a.retracted_ns is None and not case.schedule.is_sync(a.iteration - 1))
    a.retracted_ns = a.arrival_ns


@breaks(3, symbolic)
def published_without_what_was_taken_back(case: Case) -> None:
    a = case.join(lambda a: a.retracted_ns is not None and not case.schedule.is_sync(a.iteration))
    before = case.iteration[a.rank, a.iteration - 1]
    wrong = symbol("gradient", before.model_digest, a.rank, a.iteration)
    for e in case.trace.executions:
        if (e.rank, e.contribution_digest) == (a.rank, a.published_digest):
            return  # else this would change a sum, which promise 2 would report
    a.published_digest = wrong


@breaks(3, symbolic)
def updated_with_another_sum(case: Case) -> None:
    """The last iteration of a rank: nothing is made from its model."""
    case.iteration[2, ITERATIONS - 2].model_digest = OTHER


@breaks(4)
def late_called_fresh(case: Case) -> None:
    case.join(lambda a: a.fresh is False and a.merged_version == a.iteration).fresh = True


@breaks(4)
def fresh_called_late(case: Case) -> None:
    case.join(lambda a: a.fresh is True and not case.schedule.is_sync(a.iteration)).fresh = False


@breaks(5)
def nothing_though_something_was_published(case: Case) -> None:
    """One version later than it could be: the next one, which had nothing, gets it."""

    def wanted(e: Execution) -> bool:
        own, after = case.iteration.get((e.rank, e.own_stamp)), case.later_null(e)
        return own is not None and after is not None and own.arrival_ns < e.started_ns and (e.version + 2) % PERIOD > 1

    e = case.pick(lambda e: e.own_stamp not in (NONE, e.version) and wanted(e))
    after = case.later_null(e)
    assert after is not None
    assert e.oldest_stamp is not None
    case.contribute(after, e.oldest_stamp, e.own_stamp, e.contribution_digest)
    case.contribute(e, NONE, NONE, "null")


@breaks(5)
def a_sync_before_its_own_arrival(case: Case) -> None:
    e = next(e for e in case.trace.executions if case.schedule.is_sync(e.version) and e.version <= case.last[e.rank])
    a = case.iteration[e.rank, e.version]
    a.arrival_ns = e.started_ns + 1
    a.return_ns = max(a.return_ns, a.arrival_ns)


@breaks(6)
def another_model_after_a_sync(case: Case) -> None:
    syncs = [a for a in case.trace.iterations if case.schedule.is_sync(a.iteration)]
    mine = [a for a in syncs if a.iteration == max(b.iteration for b in syncs if b.rank == 0)]
    assert len(mine) > 1
    mine[-1].model_digest = OTHER


@breaks(7)
def activated_by_who_is_no_candidate(case: Case) -> None:
    first = min(case.last.values())
    executions = (e for e in case.trace.executions if e.version <= first and not case.schedule.is_sync(e.version))
    next(e for e in executions if not case.schedule.may_activate(e.rank, e.version)).activator = True


@breaks(7, symbolic)
def a_candidate_that_did_not_activate(case: Case) -> None:
    e = case.pick(lambda e: e.activator)
    e.activated_ns = case.iteration[e.rank, e.version].arrival_ns + 1


@pytest.mark.parametrize(("promise", "mutation", "base"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_promise_is_reported_alone(promise: int, mutation: Mutation, base: Callable[[], Trace]) -> None:
    case = Case(base)
    mutation(case)
    violations = validate(case.trace)
    assert {v.promise for v in violations} == {promise}
    for v in violations:
        assert "\n" not in v.message
        assert "expected" in v.message


# -- arbitrary runs, and machines with defects -----------------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(
    st.integers(1, 9), st.integers(0, 6), st.integers(1, 24), st.integers(0, 2**32), st.booleans(), st.booleans(),
    st.sampled_from(["solo", "majority", 1, 2, 3]),
)  # fmt: skip
def test_legal_runs_keep_every_promise(
    ranks: int, period: int, iterations: int, seed: int, once: bool, early: bool, initiators: Any
) -> None:
    chosen = min(initiators, ranks) if isinstance(initiators, int) else initiators
    assert_promises(synthetic_trace(ranks, 1, period, iterations, seed, once, early, algorithm="eager_sgd", initiators=chosen))


def test_runs_are_as_adversarial_as_they_say() -> None:
    runs = [synthetic_trace(7, 1, 6, 30, seed, close_early=True, algorithm="eager_sgd", initiators=2) for seed in range(12)]
    executions = [e for run in runs for e in run.executions if not run.schedule.is_sync(e.version)]
    arrivals = {(run.source, a.rank, a.iteration): a for run in runs for a in run.iterations}
    assert max(e.staleness for e in executions if e.staleness is not None) >= 4  # the bound; more for closed ranks
    assert sum(map(several, executions)) > 100
    assert sum(e.own_stamp == NONE for e in executions) > 500
    taken_back_and_missed = [
        e for run in runs for e in run.executions
        if e.own_stamp == NONE
        and (a := arrivals.get((run.source, e.rank, e.version))) is not None
        and a.retracted_ns is not None and a.retracted_ns < e.started_ns < a.arrival_ns
    ]  # fmt: skip
    assert taken_back_and_missed


class Keeps(Machine):
    """Leaves a gradient published that a version has taken."""

    __slots__ = ()

    def _start(self, outputs: list[Output]) -> None:
        published, stamp, oldest = self.published, self.stamp, self.oldest
        super()._start(outputs)
        if self.published != published and not self.schedule.is_sync(self.executing):
            self.published, self.stamp, self.oldest = published, stamp, oldest


class Forgets(Machine):
    """Forgets, on taking gradients back, that they are older."""

    __slots__ = ()

    def retract(self) -> list[Output]:
        outputs = super().retract()
        self.oldest = NONE
        return outputs


class Activates(Machine):
    """Activates whatever it arrives at."""

    __slots__ = ()

    def activates(self, version: int) -> bool:
        return version > self.activated


def test_a_null_that_is_left_out_of_the_sum_is_seen() -> None:
    """It is not nothing: zeros have a place in the association tree."""

    class Skips(Symbols):
        def reduce(self, contributions: Sequence[str | None], mean: bool) -> str:
            return super().reduce([c for c in contributions if c is not None], mean)

    scenario = load("digits", {"ranks": 4, "iterations": 30})
    assert {v.promise for v in validate(simulate(scenario, "eager_sgd", Skips(4)))} == {2}


def test_a_sum_over_fewer_ranks_than_all_is_seen() -> None:
    class Divides(Symbols):
        def average(self, rank: int, total: str | None, own_weight: float, divisor: float, value: Value) -> None:
            super().average(rank, total, own_weight, divisor - 1, value)

    scenario = load("digits", {"ranks": 4, "iterations": 30})
    assert {v.promise for v in validate(simulate(scenario, "eager_sgd", Divides(4)))} == {3}


def test_a_gradient_from_before_the_last_sync_breaks_the_bound() -> None:
    """And promise 3, since the sync's model contains it."""
    case = Case(synthetic)
    e = case.pick(lambda e: e.own_stamp != NONE and e.version <= case.last[e.rank] and e.version % PERIOD == 0)
    e.oldest_stamp = e.version - 2
    found = {v.promise: v.message for v in validate(case.trace)}
    assert found.keys() == {3, 5}
    assert "contributed twice" in found[3]
    assert f"staleness 2 (oldest stamp {e.version - 2}), expected 0 to 0" in found[5]


def test_a_late_candidate_is_told_apart_from_a_late_start() -> None:
    case = Case(symbolic)
    a_candidate_that_did_not_activate(case)
    assert any("which may activate it" in v.message for v in validate(case.trace))


@pytest.mark.parametrize(("machine", "promises"), [(Keeps, {3}), (Forgets, {3}), (Activates, {7})])
def test_defects_of_the_machine_are_seen(machine: type[Machine], promises: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wagma.sim.collective.Machine", machine)
    scenario = load("digits", {"ranks": 4, "iterations": 30, "algorithms.eager_sgd.initiators": "majority"})
    found = {v.promise for v in validate(simulate(scenario, "eager_sgd", Symbols(4)))}
    assert found >= promises
    monkeypatch.undo()
    assert not validate(simulate(scenario, "eager_sgd", Symbols(4)))


def test_traces_survive_a_file(tmp_path: Any) -> None:
    trace = synthetic()
    trace.write(tmp_path / "trace.jsonl")
    again = load_trace(tmp_path / "trace.jsonl")
    assert again.executions == trace.executions
    assert again.iterations == trace.iterations
    assert validate(again) == []
