"""What defines each algorithm, on numbers: special cases of W section 4, and who is left out."""

from __future__ import annotations

from typing import Any

import pytest

from wagma.algorithms import ALGORITHMS
from wagma.core.schedule import Schedule
from wagma.core.symbols import merged
from wagma.errors import InputError
from wagma.scenario import load
from wagma.sim.driver import simulate
from wagma.sim.numerics import Replicas, Symbols
from wagma.trace import Trace
from wagma.validate import validate

pytest.importorskip("torch")
pytest.importorskip("sklearn")


def digits(algorithm: str, **changes: Any) -> Trace:
    from wagma.workloads import replicas

    scenario = load("digits", {"iterations": 12, **{key.replace("__", "."): value for key, value in changes.items()}})
    trace = simulate(scenario, algorithm, Replicas(replicas(scenario)))
    assert not validate(trace)
    return trace


def models(trace: Trace) -> dict[tuple[int, int], str | None]:
    return {(record.rank, record.iteration): record.model_digest for record in trace.iterations}


def test_allreduce_keeps_models_bit_identical() -> None:
    trace = digits("allreduce_sgd")
    for t in range(12):
        assert len({models(trace)[rank, t] for rank in range(4)}) == 1


def test_wagma_without_imbalance_and_one_group_averages_models_every_iteration() -> None:
    """S = P and everybody fresh: the same bits as local SGD that averages in every iteration."""
    balanced = {"imbalance": [], "algorithm__group_size": 4, "algorithm__sync_period": "never"}
    wagma = digits("wagma_sgd", **balanced)
    local = digits("local_sgd", imbalance=[], algorithms__local_sgd__sync_period=1)
    assert models(wagma) == models(local)


def test_wagma_with_a_sync_in_every_iteration_is_local_sgd_with_period_one() -> None:
    wagma = digits("wagma_sgd", algorithm__sync_period=1)
    local = digits("local_sgd", algorithms__local_sgd__sync_period=1)
    assert models(wagma) == models(local)


def test_local_sgd_joins_syncs_only() -> None:
    trace = digits("local_sgd", algorithms__local_sgd__sync_period=4)
    assert {e.version for e in trace.executions} == {3, 7, 11}
    assert all((record.fresh is None) == ((record.iteration + 1) % 4 != 0) for record in trace.iterations)


def test_ideal_never_communicates_and_suffers_no_delay() -> None:
    trace = digits("ideal")
    assert not trace.executions
    assert all(record.delayed_ns == 0 and record.fresh is None for record in trace.iterations)


def test_late_models_are_averaged_with_one_more_in_the_divisor() -> None:
    """Recompute one late merge from its parts: the symbols of sum and own model, weight 1, divisor |G| + 1."""
    scenario = load("digits", {"iterations": 20})
    trace = simulate(scenario, "wagma_sgd", Symbols(4))
    late = [record for record in trace.iterations if record.fresh is False]
    assert late
    for record in late:
        assert record.model_digest == merged(record.merged_digest, record.published_digest, 1, 3)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_promises_hold_for_every_algorithm_and_odd_worlds(algorithm: str, ranks: int) -> None:
    for seed in range(5):
        scenario = load("digits", {"iterations": 23, "ranks": ranks, "seed": seed, "algorithm.group_size": min(2, ranks)})
        assert not validate(simulate(scenario, algorithm, Symbols(ranks)))


def test_merge_once_never_merges_a_version_twice() -> None:
    scenario = load("digits", {"iterations": 60, "algorithm.merge_once": True, "imbalance.0.delay_s": 0.5})
    trace = simulate(scenario, "wagma_sgd", Symbols(4))
    assert not validate(trace)
    for rank in range(4):
        merged = [r.merged_version for r in trace.iterations if r.rank == rank and r.merged_version is not None]
        assert len(merged) == len(set(merged))
    assert any(record.merged_version is None for record in trace.iterations)


def test_local_sgd_without_a_period_is_refused() -> None:
    scenario = load("digits", {"algorithms.local_sgd.sync_period": "never"})
    with pytest.raises(InputError, match="local_sgd does nothing but sync"):
        scenario.schedule("local_sgd")


def test_schedule_of_each_algorithm() -> None:
    assert ALGORITHMS["wagma_sgd"].schedule(8, 4, 10) == Schedule(8, 4, 10)
    assert ALGORITHMS["allreduce_sgd"].schedule(8, 4, 10).is_sync(3)
