"""`network.overlap` and what is sent before the compute has ended: who waits for whose gradient, by hand and on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from engines import assert_agree, measured, table

from wagma.algorithms import ALGORITHMS, Collectives, register
from wagma.core.effects import Algorithm, ApplyUpdate, Average, ComputeGradient, Exchange, RankView, Scale, Value
from wagma.core.graphs import ring
from wagma.scenario import Scenario, read
from wagma.sim.driver import simulate
from wagma.sim.numerics import Nothing, Symbols
from wagma.trace import Trace
from wagma.validate import validate

#: Three ranks, of which the last is slow; all but a twentieth of the compute overlaps with messages of 10 ns.
SLOW = {
    "compute": measured([[1000], [1000], [9000]]),
    "model": {"parameters": 1},
    "network": {"latency_ns": 10, "overlap": 0.95},
}


def run(scenario: Scenario, algorithm: str) -> Trace:
    """A run, checked."""
    trace = simulate(scenario, algorithm, Symbols(scenario.ranks))
    assert validate(trace) == []
    return trace


@contextmanager
def registered(algorithm: Any, name: str = "mine") -> Iterator[str]:
    register(name, Collectives.NEIGHBOURS)(algorithm)
    try:
        yield name
    finally:
        del ALGORITHMS[name]


def exchanged(trace: Trace) -> list[tuple[int, int]]:
    return [(x.started_ns, x.completed_ns) for x in trace.exchanges]


def test_a_model_from_before_the_gradient_waits_for_no_gradient() -> None:
    """D-PSGD: rank 2 sends at 450 ns, and what it sends has been there since the beginning; it ends with its gradient."""
    scenario = read(table(3, 1, **SLOW), "slow")
    trace = run(scenario, "d_psgd")
    assert exchanged(trace) == [(50, 460), (50, 460), (450, 450)]
    assert [a.return_ns for a in trace.iterations] == [1000, 1000, 9000]
    assert assert_agree(scenario, "d_psgd").return_ns.tolist() == [[1000, 1000, 9000]]


def test_a_model_with_the_gradient_in_it_waits_for_it() -> None:
    """SGP: rank 0 gets the model of rank 2, which is complete at 9000 ns only."""
    scenario = read(table(3, 1, **SLOW), "slow")
    trace = run(scenario, "sgp")
    assert exchanged(trace) == [(50, 9000), (50, 1000), (450, 1000)]
    assert [a.return_ns for a in trace.iterations] == [9000, 1000, 9000]
    assert assert_agree(scenario, "sgp").return_ns.tolist() == [[9000, 1000, 9000]]


def gradients(rank: RankView) -> Algorithm:
    """Gradients travel before any model is updated."""
    neighbours = ring(rank.schedule.world_size, rank.rank)
    for t in rank.iterations:
        yield ComputeGradient(t)
        outcome = yield Exchange(t, Value.GRADIENT, to=neighbours, sources=neighbours)
        yield Average(t, 1, 1 + outcome.mass, Value.GRADIENT)
        yield ApplyUpdate(t)


def weighted_first(rank: RankView) -> Algorithm:
    """A model that is weighted, and not updated, before it travels."""
    neighbours = ring(rank.schedule.world_size, rank.rank)
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield Scale(t, 0.5)
        outcome = yield Exchange(t, Value.MODEL, to=neighbours, sources=neighbours)
        yield Average(t, 1, 1 + outcome.mass)
        yield ApplyUpdate(t)


def test_ones_own_exchanges_wait_for_what_they_send() -> None:
    scenario = read(table(3, 1, **SLOW), "slow")
    with registered(gradients) as name:
        assert exchanged(run(scenario, name)) == [(50, 9000), (50, 9000), (450, 1000)]
        assert_agree(scenario, name)
    with registered(weighted_first) as name:
        assert exchanged(run(scenario, name)) == [(50, 460), (50, 460), (450, 450)]
        assert_agree(scenario, name)


@pytest.mark.parametrize("algorithm", ["d_psgd", "sgp"])
@pytest.mark.parametrize("global_clock", [False, True])
def test_with_a_global_clock_an_iteration_ends_with_the_last_gradient(algorithm: str, global_clock: bool) -> None:
    own = {algorithm: {"global_clock": global_clock}}
    scenario = read(table(3, 1, **SLOW, algorithms=own), "slow")
    ends = [a.return_ns for a in run(scenario, algorithm).iterations]
    assert (ends == [9000] * 3) == global_clock
    assert_agree(scenario, algorithm)


@pytest.mark.parametrize(("algorithm", "later"), [("d_psgd", 8540), ("sgp", -8540)])
def test_the_checkers_know_who_waits_for_a_gradient(algorithm: str, later: int) -> None:
    """Rank 0's exchange in D-PSGD ends as if it had waited for the gradient of rank 2, in SGP as if it had not."""
    trace = run(read(table(3, 1, **SLOW), "slow"), algorithm)
    x = next(x for x in trace.exchanges if x.rank == 0)
    x.completed_ns += later
    trace.iterations[0].return_ns = max(x.completed_ns, 1000)
    assert 7 in {v.promise for v in validate(trace) if v.rank == 0}


@pytest.mark.parametrize("algorithm", ["ad_psgd", "swarm_sgd"])
def test_pairs_average_no_model_that_does_not_exist_yet(algorithm: str) -> None:
    """A partner's model becomes the mean the instant it is asked: so overlap changes nothing, and no rank asks before its update."""
    times = []
    for overlap in (0, 0.9):
        scenario = read(table(4, 9, network={"latency_ns": 10, "overlap": overlap}), "pairs")
        trace = run(scenario, algorithm)
        times.append([(x.rank, x.role, x.started_ns, x.completed_ns) for x in trace.exchanges])
        if algorithm == "swarm_sgd":
            ends = {(a.rank, a.iteration): a.arrival_ns for a in trace.iterations}
            begun = {(a.rank, a.iteration): a.return_ns for a in trace.iterations}
            for x in trace.exchanges:
                if x.role == "active":
                    before = begun.get((x.rank, x.version - 1), 0)
                    record = next(a for a in trace.iterations if (a.rank, a.iteration) == (x.rank, x.version))
                    assert x.started_ns >= ends[x.rank, x.version] == before + record.computed_ns
    assert times[0] == times[1]


def test_nothing_changes_where_nothing_overlaps() -> None:
    """The base order of D-PSGD: it sends after the compute, although what it sends has been there before."""
    scenario = read(table(3, 1, **{**SLOW, "network": {"latency_ns": 10}}), "slow")
    assert [a.return_ns for a in simulate(scenario, "d_psgd", Nothing()).iterations] == [9010, 9010, 9000]
