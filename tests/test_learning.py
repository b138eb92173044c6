"""Training in virtual time: all ranks in one batch against one replica a rank, skewed shards, special cases of the algorithms."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

from wagma.algorithms import ALGORITHMS
from wagma.core.effects import ApplyUpdate, Average, GroupAllreduce, GroupOutcome, Value
from wagma.core.schedule import Schedule
from wagma.core.settings import AlgorithmSettings
from wagma.errors import InputError
from wagma.scenario import Scenario, load
from wagma.trace import Trace
from wagma.validate import validate

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from wagma import workloads
from wagma.sim import batched, driver
from wagma.sim.batched import Batched
from wagma.sim.numerics import Replicas
from wagma.studies.learning import train
from wagma.workloads.replica import Replica
from wagma.workloads.shards import deal

#: Largest difference of any parameter after 30 iterations, batched or one by one. Parameters are of the order of 0.1 to 1, of which float32
#: has 6e-8; a processor or library that adds up in another order in a batch may lead a few times that apart.
TOLERANCE = 1e-5


def skewed(**changes: Any) -> Scenario:
    small = {"ranks": 8, "iterations": 30, "training.learning_rate": 0.1}
    return load("digits_skewed", small | {key.replace("__", "."): value for key, value in changes.items()})


def final_models(scenario: Scenario, algorithm: str, mode: str) -> tuple[np.ndarray[Any, Any], Trace]:
    data = workloads.workload(scenario)
    numerics = (
        Batched(data, scenario) if mode == "batched" else Replicas([Replica(data, scenario, r) for r in range(scenario.ranks)])
    )
    trace = driver.simulate(scenario, algorithm, numerics)
    return np.stack([numerics.publish(rank, Value.MODEL) for rank in range(scenario.ranks)]), trace


def times(trace: Trace) -> list[tuple[int, int, int, bool | None]]:
    return [(a.rank, a.arrival_ns, a.return_ns, a.fresh) for a in trace.iterations]


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_batched_training_is_per_rank_training_within_rounding(algorithm: str) -> None:
    scenario = skewed(training__momentum=0.5)
    one_by_one, timed = final_models(scenario, algorithm, "per_rank")
    together, timed_too = final_models(scenario, algorithm, "batched")
    assert times(timed) == times(timed_too)
    assert np.abs(one_by_one - together).max() < TOLERANCE
    # The bound means something: another order of the data, all else equal, leads a thousand times as far apart.
    other, _ = final_models(skewed(training__momentum=0.5, seed=2), algorithm, "batched")
    assert np.abs(one_by_one - other).max() > 1000 * TOLERANCE


def test_convolutions_are_batched_too() -> None:
    scenario = load("digits", {"iterations": 12})
    one_by_one, _ = final_models(scenario, "wagma_sgd", "per_rank")
    together, _ = final_models(scenario, "wagma_sgd", "batched")
    assert np.abs(one_by_one - together).max() < TOLERANCE


def test_a_gradient_is_of_the_model_as_it_was_when_computing_began() -> None:
    """Pair averaging changes a model while its rank computes: that must not reach the gradient under way, nor be lost."""
    scenario = skewed(ranks=2)
    data = workloads.workload(scenario)
    changed, untouched = Batched(data, scenario), Batched(data, scenario)
    for numerics in (changed, untouched):
        numerics.compute_gradient(0, 3)
    changed.replace(0, Value.MODEL, np.zeros(scenario.parameters, np.float32))
    gradient = changed.publish(0, Value.GRADIENT)
    assert np.array_equal(gradient, untouched.publish(0, Value.GRADIENT))
    assert np.abs(gradient).max() > 0
    changed.apply_update(0, 3)
    assert np.array_equal(changed.publish(0, Value.MODEL), np.float32(-0.1) * gradient)


@pytest.mark.parametrize(("delay", "most"), [(0.0, 1.0), (0.32, 1.5)])
def test_ranks_are_evaluated_together(monkeypatch: pytest.MonkeyPatch, delay: float, most: float) -> None:
    """One call an iteration without imbalance; late ranks need some more, but not one each."""
    calls: list[int] = []
    compute = batched.Gradients.__call__

    def counted(self: batched.Gradients, models: Any, batches: Any) -> Any:
        calls.append(len(batches))
        return compute(self, models, batches)

    monkeypatch.setattr(batched.Gradients, "__call__", counted)
    scenario = skewed(imbalance__0__delay_s=delay)
    train(scenario, "wagma_sgd")
    assert sum(calls) == scenario.ranks * scenario.iterations
    assert len(calls) <= most * scenario.iterations


def test_more_ranks_than_one_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = final_models(skewed(iterations=4), "sgp", "batched")
    monkeypatch.setattr(batched, "MOST", 3)
    parts, _ = final_models(skewed(iterations=4), "sgp", "batched")
    assert np.abs(whole - parts).max() < TOLERANCE


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_traces_of_batched_training_keep_the_promises(algorithm: str) -> None:
    traced = train(skewed(), algorithm, digests=True).trace
    assert traced.header.digests == "content"
    assert len({a.model_digest for a in traced.iterations}) >= 30
    assert validate(traced) == []


def test_digests_cost_nothing_unless_asked_for() -> None:
    trace = train(skewed(), "wagma_sgd").trace
    assert trace.header.digests == "off"
    assert {a.model_digest for a in trace.iterations} == {None}
    assert {e.sum_digest for e in trace.executions} == {None}


@pytest.mark.parametrize("algorithm", ["wagma_sgd", "ad_psgd", "eager_sgd"])
def test_looking_changes_nothing(algorithm: str) -> None:
    assert [point.iterations for point in train(skewed(), algorithm, every=8).curve] == [0, 8, 16, 24, 30]
    unseen, seen = train(skewed(), algorithm, digests=True), train(skewed(), algorithm, digests=True, every=1)
    assert (unseen.trace.executions, unseen.trace.iterations) == (seen.trace.executions, seen.trace.iterations)
    assert not unseen.curve
    assert [point.iterations for point in seen.curve] == list(range(31))
    assert sorted(point.time_ns for point in seen.curve) == [point.time_ns for point in seen.curve]
    assert seen.curve[-1].score == seen.trace.header.score == unseen.trace.header.score
    assert seen.curve[-1].time_ns == max(a.return_ns for a in seen.trace.iterations)


def test_ranks_that_never_communicate_have_no_common_model() -> None:
    alone = train(skewed(), "ideal")
    assert alone.trace.header.score is None
    assert alone.trace.header.own_score is not None
    assert alone.trace.header.own_score > 0.1


# -- special cases --------------------------------------------------------------------------------------------------------


def balanced(algorithm: str, mode: str = "per_rank", ranks: int = 8, **changes: Any) -> np.ndarray[Any, Any]:
    return final_models(skewed(imbalance=[], ranks=ranks, **changes), algorithm, mode)[0]


@pytest.mark.parametrize("mode", ["per_rank", "batched"])
def test_wagma_with_one_group_and_no_imbalance_is_model_averaging_in_every_iteration(mode: str) -> None:
    wagma = balanced("wagma_sgd", mode, algorithm__group_size=8, algorithm__sync_period="never")
    averaging = balanced("local_sgd", mode, algorithms__local_sgd__sync_period=1)
    assert np.array_equal(wagma, averaging)
    assert np.array_equal(wagma[0], wagma[7])


@pytest.mark.parametrize("mode", ["per_rank", "batched"])
def test_wagma_whose_groups_have_one_member_is_local_sgd(mode: str) -> None:
    """Without imbalance: a late rank would be averaged with its own older model."""
    wagma = balanced("wagma_sgd", mode, algorithm__group_size=1, algorithm__sync_period=7)
    local = balanced("local_sgd", mode, algorithms__local_sgd__sync_period=7)
    assert np.array_equal(wagma, local)
    assert not np.array_equal(wagma[0], wagma[7])  # iterations 28 and 29 come after the last sync


def test_wagma_without_its_group_collectives_is_local_sgd() -> None:
    """Whatever the imbalance: the same effects in the same order, once those of the group collective are taken out."""

    class View:
        rank, iterations, settings, schedule = 0, range(40), AlgorithmSettings(), Schedule(8, 4, 7)

    def effects(algorithm: str) -> list[object]:
        generator = ALGORITHMS[algorithm].run(View())
        found, outcome = [], None
        while True:
            try:
                effect = generator.send(outcome)
            except StopIteration:
                return found
            outcome = GroupOutcome(1, 4) if isinstance(effect, GroupAllreduce) else None
            if not isinstance(effect, GroupAllreduce | Average):
                found.append(effect)

    assert effects("wagma_sgd") == effects("local_sgd")
    assert sum(isinstance(effect, ApplyUpdate) for effect in effects("local_sgd")) == 40


# -- fixed groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [8, 7])
def test_fixed_groups_are_those_of_the_first_iteration_between_syncs(ranks: int) -> None:
    scenario = skewed(ranks=ranks, algorithm__groups="fixed", algorithm__sync_period=6, algorithm__group_size=2)
    trace = train(scenario, "wagma_sgd", digests=True).trace
    assert validate(trace) == []
    between = {(e.rank, tuple(e.group)) for e in trace.executions if not scenario.schedule("wagma_sgd").is_sync(e.version)}
    assert len(between) == ranks
    assert {tuple(e.group) for e in trace.executions if (e.version + 1) % 6 == 0} == {tuple(range(ranks))}


def test_changing_groups_change() -> None:
    trace = train(skewed(algorithm__group_size=2), "wagma_sgd").trace
    assert len({(e.rank, tuple(e.group)) for e in trace.executions}) > 2 * 8


# -- shards ---------------------------------------------------------------------------------------------------------------

LABELS = np.repeat(np.arange(10), [140, 150, 141, 146, 145, 145, 144, 143, 139, 144])


def kinds_of(shards: list[np.ndarray[Any, Any]]) -> float:
    """Labels in a shard, on average."""
    return float(np.mean([len(set(LABELS[shard])) for shard in shards]))


@pytest.mark.parametrize("ranks", [1, 3, 64, len(LABELS)])
@pytest.mark.parametrize("kind", ["iid", "by_label", "dirichlet"])
def test_every_example_is_in_one_shard_and_shards_are_alike_in_length(kind: str, ranks: int) -> None:
    shards = deal(LABELS, ranks, 5, kind, 0.1)
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(LABELS)))
    lengths = [len(shard) for shard in shards]
    assert max(lengths) - min(lengths) <= 1
    again = deal(LABELS, ranks, 5, kind, 0.1)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))
    if 1 < ranks < len(LABELS):
        other = deal(LABELS, ranks, 6, kind, 0.1)
        assert any(set(a) != set(b) for a, b in zip(shards, other, strict=True))


def test_shards_are_as_skewed_as_asked() -> None:
    by_kind = {kind: kinds_of(deal(LABELS, 64, 5, kind, 1.0)) for kind in ("iid", "by_label")}
    assert by_kind["iid"] > 8
    assert by_kind["by_label"] < 1.5
    by_concentration = [kinds_of(deal(LABELS, 64, 5, "dirichlet", c)) for c in (0.01, 0.1, 1.0, 10.0, 1e6)]
    assert by_concentration == sorted(by_concentration)
    assert by_concentration[0] < 3  # some end with what is left
    assert abs(by_concentration[-1] - by_kind["iid"]) < 0.5


def test_ranks_next_to_each_other_do_not_have_neighbouring_labels() -> None:
    """A ring would otherwise be a chain from digit 0 to digit 9, which no real cluster is."""
    first = [LABELS[shard[0]] for shard in deal(LABELS, 64, 5, "by_label", 1.0)]
    assert sum(abs(int(a) - int(b)) <= 1 for a, b in itertools.pairwise(first)) < 32


def test_both_worlds_train_on_the_skewed_shards() -> None:
    """What a real rank is given is a replica, and that has the same shards."""
    replica = workloads.replicas(skewed(training__shards="by_label", ranks=8))[3]
    labels = set(replica.workload.labels(3).tolist())  # type: ignore[attr-defined]
    assert len(labels) <= 3


def test_a_batch_that_no_shard_can_give_is_refused() -> None:
    with pytest.raises(InputError, match=r"training.batch_size = 23: the smallest shard of 64 has 22 images"):
        workloads.workload(load("digits_skewed", {"training.batch_size": 23, "work.per_rank": 23}))


def test_the_model_has_the_size_of_its_workload() -> None:
    with pytest.raises(InputError, match=r"model.parameters = 9930: the workload digits_mlp has 2410"):
        workloads.workload(load("digits_skewed", {"model.parameters": 9_930}))


@pytest.mark.long
def test_64_ranks_and_1000_iterations_take_less_than_a_minute() -> None:
    for algorithm in ALGORITHMS:
        began = time.perf_counter()
        train(load("digits_skewed"), algorithm, every=5)
        assert time.perf_counter() - began < 60, algorithm
