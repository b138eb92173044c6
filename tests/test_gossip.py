"""What defines the gossip algorithms: what they keep, where they mix, how stale they get, and whom they wait for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from points import registered, scenario_table, swarm

import wagma
from wagma.algorithms import ALGORITHMS, sgp
from wagma.algorithms.sgp import Digraph
from wagma.cli import main, parser
from wagma.commands import train
from wagma.core.effects import Algorithm, Barrier, ComputeGradient, Exchange, PairAverage, RankView, Value
from wagma.errors import InputError, WagmaError
from wagma.results import summarize
from wagma.scenario import read
from wagma.sim.driver import simulate
from wagma.sim.numerics import Symbols
from wagma.testing import synthetic_trace
from wagma.trace import Trace
from wagma.validate import validate

GOSSIP = ["d_psgd", "sgp", "ad_psgd", "swarm_sgd"]
SYNCHRONOUS = ["d_psgd", "sgp"]
SIZES = [1, 2, 3, 5, 8]
#: Half of the ranks late at a time, by many iterations.
STRAGGLERS = [{"kind": "independent", "probability": 0.3, "delay_s": 7e-6}]
#: A message takes half an iteration, and an interface is busy for a third of one.
NETWORK = {"latency_ns": 100, "overhead_ns": 10, "gap_ns": 50, "gap_per_byte_ns": 1.0}


def draws(ranks: int, seed: int = 1) -> list[list[float]]:
    """Three coordinates a rank."""
    return np.random.default_rng(seed).normal(size=(ranks, 3)).tolist()


def spread(models: Any) -> float:
    """The largest distance of a rank from the mean, per coordinate."""
    return float(np.abs(models - models.mean(axis=0)).max())


# -- what is kept ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", GOSSIP)
@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize("out_neighbours", [1, 3])
def test_the_mean_is_kept_and_all_come_to_it(algorithm: str, ranks: int, out_neighbours: int) -> None:
    """Mixing alone, doubly stochastic whatever is late: the mean stays, and the ranks meet there."""
    start = draws(ranks)
    own = {"sgp": {"out_neighbours": out_neighbours}}
    numerics, trace = swarm(algorithm, start, 120, imbalance=STRAGGLERS, network=NETWORK, algorithms=own)
    assert not validate(trace)
    mean = np.mean(start, axis=0)
    assert numerics.models.mean(axis=0) == pytest.approx(mean, abs=1e-14)
    assert numerics.models == pytest.approx(np.tile(mean, (ranks, 1)), abs=1e-6)


@pytest.mark.parametrize("algorithm", GOSSIP)
def test_the_mean_is_kept_in_float32_without_drift(algorithm: str) -> None:
    """A weight that float32 rounds, 1/3 say, would let the mean grow by 3e-8 in each of these iterations, always upwards."""
    start = [[1.0 + rank / 7, -3.0, 1e-3] for rank in range(6)]
    numerics, _ = swarm(algorithm, start, 400, dtype="float32", algorithms={"sgp": {"out_neighbours": 2}})
    assert numerics.models.mean(axis=0) == pytest.approx(np.mean(start, axis=0), rel=2e-6)


@pytest.mark.parametrize("algorithm", GOSSIP)
@pytest.mark.parametrize("ranks", SIZES)
def test_averaging_neither_makes_nor_loses_updates(algorithm: str, ranks: int) -> None:
    """The sum of all models moves by the sum of all updates: also by those that come between a message and its answer."""
    start = draws(ranks)
    numerics, trace = swarm(algorithm, start, 60, targets=draws(ranks, 2), rate=0.05, imbalance=STRAGGLERS, network=NETWORK)
    assert not validate(trace)
    expected = np.sum(start, axis=0) + numerics.moved
    assert numerics.models.sum(axis=0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("algorithm", GOSSIP)
@pytest.mark.parametrize("ranks", SIZES[1:])
def test_consensus_on_a_quadratic(algorithm: str, ranks: int) -> None:
    """Each rank pulls to a target of its own; together they end near the mean of the targets, and near each other."""
    targets = draws(ranks, 2)
    numerics, _ = swarm(algorithm, draws(ranks), 300, targets=targets, rate=0.02, imbalance=STRAGGLERS, network=NETWORK)
    apart = spread(np.array(targets))
    # Late ranks pull less often, so that the balance is not exactly the mean of the targets.
    assert numerics.models.mean(axis=0) == pytest.approx(np.mean(targets, axis=0), abs=0.3 * apart)
    assert spread(numerics.models) < 0.3 * apart


@pytest.mark.parametrize("algorithm", GOSSIP)
def test_without_imbalance_consensus_is_at_the_mean_of_the_targets(algorithm: str) -> None:
    targets = draws(8, 2)
    numerics, _ = swarm(algorithm, draws(8), 200, targets=targets, rate=0.05)
    assert numerics.models.mean(axis=0) == pytest.approx(np.mean(targets, axis=0), abs=0.02)


# -- push-sum ----------------------------------------------------------------------------------------------------------------

#: Strongly connected over time, and as irregular as can be: rank 0 sends to three, rank 4 to nobody in odd iterations.
EDGES = {0: [1, 2, 3], 1: [2], 2: [3, 0], 3: [4], 4: [0]}


def irregular(rank: RankView) -> Digraph:
    def neighbours(t: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        edges = {source: to for source, to in EDGES.items() if not (source == 4 and t % 2)}
        return tuple(edges.get(rank.rank, ())), tuple(source for source in edges if rank.rank in edges[source])

    return neighbours


def push_sum(rank: RankView) -> Algorithm:
    return sgp(rank, graph=irregular)


@pytest.fixture
def push() -> Iterator[str]:
    with registered("push_sum", push_sum):
        yield "push_sum"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_push_sum_finds_the_mean_on_an_irregular_digraph(push: str, dtype: str) -> None:
    start = draws(5)
    numerics, trace = swarm(push, start, 300, dtype=dtype, imbalance=STRAGGLERS, network=NETWORK)
    assert not validate(trace)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    assert numerics.models == pytest.approx(np.tile(np.mean(start, axis=0), (5, 1)), abs=tolerance)
    assert numerics.weights.max() - numerics.weights.min() > 0.5, "all weights alike: the digraph is not irregular"


@pytest.mark.parametrize("iterations", [2, 5, 8])
def test_push_sum_keeps_the_weighted_mean_on_an_irregular_digraph(push: str, iterations: int) -> None:
    """Sum of w z over all ranks, at the beginning of the last iteration, whose averaging a rate of 0 and free messages leave out."""
    start = draws(5)
    before, _ = swarm(push, start, iterations - 1)
    after, _ = swarm(push, start, iterations)
    weights = after.weights  # those with which the last iteration began
    assert weights.sum() == pytest.approx(5, abs=1e-14)
    assert (weights[:, None] * before.models).sum(axis=0) == pytest.approx(np.sum(start, axis=0), abs=1e-13)
    assert np.abs(before.models.sum(axis=0) - np.sum(start, axis=0)).max() > 0.01, "the plain mean is kept as well"


def test_push_sum_keeps_its_weights_at_one_on_a_regular_digraph() -> None:
    for out_neighbours in (1, 2, 3, 4, 6):
        numerics, _ = swarm("sgp", draws(7), 40, algorithms={"sgp": {"out_neighbours": out_neighbours}})
        assert set(numerics.weights) == {1.0}


def test_push_sum_with_updates_on_an_irregular_digraph(push: str) -> None:
    """x = w z moves by the update, so the weighted sum moves by the sum of all updates."""
    start, targets = draws(5), draws(5, 2)
    before, _ = swarm(push, start, 30, targets=targets, rate=0.05)
    after, _ = swarm(push, start, 31, targets=targets, rate=0.05)
    expected = np.sum(start, axis=0) + before.moved
    assert (after.weights[:, None] * before.models).sum(axis=0) == pytest.approx(expected, abs=1e-12)


# -- where they mix, by hand -------------------------------------------------------------------------------------------------


def test_d_psgd_mixes_before_the_update() -> None:
    """W x - eta g(x), three ranks on a ring: (3 + 6 + 12) / 3 = 7, minus half of each one's own gradient at its own model."""
    numerics, _ = swarm("d_psgd", [[3], [6], [12]], 1, targets=[[1], [8], [4]], rate=0.5)
    assert numerics.models.ravel().tolist() == [7 - 0.5 * 2, 7 - 0.5 * -2, 7 - 0.5 * 8]


def test_sgp_mixes_after_the_update() -> None:
    """W (x - eta g(x)), two ranks: 3 - 1 = 2 and 6 + 1 = 7, of which both get the mean."""
    numerics, _ = swarm("sgp", [[3], [6]], 1, targets=[[1], [8]], rate=0.5)
    assert numerics.models.ravel().tolist() == [4.5, 4.5]


def test_sgp_by_hand_on_four_ranks() -> None:
    """One neighbour: in iteration 0 rank r gets half of rank r - 1's, in iteration 1 half of rank r - 2's."""
    start = [[0.0], [8.0], [16.0], [40.0]]
    first, _ = swarm("sgp", start, 1)
    assert first.models.ravel().tolist() == [20, 4, 12, 28]
    second, _ = swarm("sgp", start, 2)
    assert second.models.ravel().tolist() == [16, 16, 16, 16]


def test_gradients_are_those_of_the_model_before_averaging() -> None:
    """AD-PSGD, two ranks, free messages: they average to 4.5 while both compute at 3 and 6; the old gradients are applied to it."""
    numerics, trace = swarm("ad_psgd", [[3], [6]], 1, targets=[[1], [8]], rate=0.5)
    assert [x.role for x in trace.exchanges] == ["active", "passive"]
    assert numerics.models.ravel().tolist() == [4.5 - 0.5 * 2, 4.5 - 0.5 * -2]


def test_an_update_between_a_message_and_its_answer_stays() -> None:
    """AD-PSGD, two ranks; the message needs half an iteration each way, so that rank 0's update comes at the very end of it.

    Rank 1 is asked at 800 ns: (3 + 6) / 2 = 4.5. Both update at 1000 ns: 3 - 1 = 2, 4.5 + 1 = 5.5. The answer comes at 1600 ns: rank 0
    moves by half of 6 - 3, from 2 to 3.5.
    """
    network = {"latency_ns": 800}
    numerics, trace = swarm("ad_psgd", [[3], [6]], 1, targets=[[1], [8]], rate=0.5, network=network)
    assert [(x.role, x.completed_ns) for x in trace.exchanges] == [("active", 1600), ("passive", 800)]
    assert numerics.models.ravel().tolist() == [3.5, 5.5]


@pytest.mark.parametrize("local_steps", [1, 2, 5])
def test_swarm_averages_after_its_local_steps(local_steps: int) -> None:
    own = {"swarm_sgd": {"local_steps": local_steps}}
    _, trace = swarm("swarm_sgd", draws(4), 20, algorithms=own)
    for rank in range(4):
        versions = [x.version for x in trace.exchanges if x.rank == rank and x.role == "active"]
        assert versions == list(range(local_steps - 1, 20, local_steps))


# -- staleness, and who waits for whom -----------------------------------------------------------------------------------------


def run(algorithm: str, ranks: int, iterations: int = 40, **changes: Any) -> Trace:
    """A timing-only run, checked."""
    trace = simulate(read(scenario_table(ranks, iterations, **changes), "gossip"), algorithm, Symbols(ranks))
    assert not validate(trace)
    return trace


@pytest.mark.parametrize("algorithm", SYNCHRONOUS)
@pytest.mark.parametrize("ranks", SIZES)
def test_synchronous_neighbours_are_never_stale(algorithm: str, ranks: int) -> None:
    result = summarize(run(algorithm, ranks, imbalance=STRAGGLERS, network=NETWORK))
    assert (result.staleness_max, result.staleness_bound) == ((0, 0) if ranks > 1 else (None, None))


def test_ad_psgd_waits_for_nobody_and_gets_stale_without_bound() -> None:
    """Rank 1 takes 50 times as long as the others: they lose not a nanosecond, and what they get of it gets older and older."""
    slow = [{"kind": "fixed", "ranks": [1], "delay_s": 49e-6}]
    trace = run("ad_psgd", 4, iterations=200, imbalance=slow, network=NETWORK)
    for record in trace.iterations:
        assert record.return_ns == (record.iteration + 1) * (50_000 if record.rank == 1 else 1000)
    result = summarize(trace)
    assert result.staleness_bound is None
    assert result.staleness_max is not None
    assert result.staleness_max >= 190
    from_slow = [x for x in trace.exchanges if x.role == "active" and x.sources == [1]]
    assert next(x.iteration - x.stamps[0] for x in from_slow if x.iteration > 100) > 90
    # The slow rank is ahead of nobody: for it nothing is stale.
    assert all(x.stamps[0] >= x.iteration for x in trace.exchanges if x.rank == 1)


def test_swarm_waits_for_messages_only() -> None:
    slow = [{"kind": "fixed", "ranks": [1], "delay_s": 49e-6}]
    trace = run("swarm_sgd", 4, iterations=100, imbalance=slow, network=NETWORK)
    # There and back, each behind up to three other messages in the sender's interface.
    longest = 2 * (120 + 399) + 2 * 3 * (50 + 399)
    for record in trace.iterations:
        assert record.return_ns - record.arrival_ns <= longest
    assert summarize(trace).staleness_bound is None


@pytest.mark.parametrize("algorithm", SYNCHRONOUS)
def test_nobody_waits_for_a_rank_that_is_no_neighbour(algorithm: str) -> None:
    """Rank 0 is late by a millisecond. In iteration 0 only those that hear from it are."""
    slow = [{"kind": "fixed", "ranks": [0], "delay_s": 1e-3}]
    trace = run(algorithm, 8, iterations=1, imbalance=slow, network=NETWORK)
    late = {record.rank for record in trace.iterations if record.return_ns > 1_000_000}
    assert late == ({7, 0, 1} if algorithm == "d_psgd" else {0, 1})


@pytest.mark.parametrize("algorithm", SYNCHRONOUS)
def test_with_a_global_clock_all_wait_for_all(algorithm: str) -> None:
    trace = run(
        algorithm,
        6,
        imbalance=STRAGGLERS,
        network={**NETWORK, "activation_ns": 70},
        algorithms={algorithm: {"global_clock": True}},
    )
    for t in range(40):
        last = max(record.arrival_ns for record in trace.iterations if record.iteration == t)
        assert {x.started_ns for x in trace.exchanges if x.version == t} == {last + 3 * 70}


@pytest.mark.parametrize("algorithm", GOSSIP)
@pytest.mark.parametrize("ranks", [1, 2, 3, 6, 9])
def test_every_world_ends_whatever_is_slow(algorithm: str, ranks: int) -> None:
    """No deadlock: slow messages, slow ranks, busy interfaces; every iteration is there, and every pair has both sides."""
    for seed in range(3):
        network = {"latency_ns": 40_000, "gap_ns": 9_000, "overhead_ns": 700}
        trace = run(algorithm, ranks, imbalance=STRAGGLERS, network=network, seed=seed)
        assert len(trace.iterations) == 40 * ranks


def test_a_companion_ends_with_its_rank() -> None:
    """A message takes longer than the whole run: one pair is under way, is finished all the same, and no other follows."""
    numerics, trace = swarm("ad_psgd", [[0.0], [8.0]], 10, network={"latency_ns": 1e6})
    assert [(x.role, x.completed_ns) for x in trace.exchanges] == [("active", 2_000_000), ("passive", 1_000_000)]
    assert numerics.models.ravel().tolist() == [4, 4]


def test_a_slow_network_lets_the_second_activity_fall_behind_the_first() -> None:
    trace = run("ad_psgd", 2, iterations=50, network={"latency_ns": 2000})
    active = [x for x in trace.exchanges if x.role == "active"]
    assert [x.version for x in active] == list(range(len(active)))
    assert [x.completed_ns for x in active] == [4000 * (n + 1) for n in range(len(active))]
    assert len(active) == 13  # begun before the last iteration ended at 50 us


# -- LogGP, by hand --------------------------------------------------------------------------------------------------------------

LATENCY, OVERHEAD, GAP, PER_BYTE = 1000, 100, 300, 2
BY_HAND = {"latency_ns": LATENCY, "overhead_ns": OVERHEAD, "gap_ns": GAP, "gap_per_byte_ns": PER_BYTE}
MESSAGE = LATENCY + 2 * OVERHEAD + 399 * PER_BYTE
TAKEN = GAP + 399 * PER_BYTE


def returns(trace: Trace, iteration: int = 0) -> list[int]:
    return [record.return_ns for record in trace.iterations if record.iteration == iteration]


def test_d_psgd_on_two_ranks_by_hand() -> None:
    assert returns(run("d_psgd", 2, network=BY_HAND)) == [1000 + MESSAGE] * 2


def test_d_psgd_on_a_ring_by_hand() -> None:
    """Each sends to the rank before it first, then, when its interface is free, to the one after it."""
    trace = run("d_psgd", 5, network=BY_HAND)
    assert returns(trace) == [1000 + TAKEN + MESSAGE] * 5
    # All go on at once, and the interfaces are free again by the time that the gradients are there.
    assert TAKEN + MESSAGE + 1000 > 2 * TAKEN
    assert returns(trace, 1) == [2 * (1000 + TAKEN + MESSAGE)] * 5


def test_an_exchange_waits_for_its_last_neighbour_by_hand() -> None:
    """Ring of four, rank 0 late by 1 ms: its message to rank 3 leaves first, that to rank 1 after it; rank 2 is done long before."""
    trace = run("d_psgd", 4, iterations=1, imbalance=[{"kind": "fixed", "ranks": [0], "delay_s": 1e-3}], network=BY_HAND)
    late = 1_001_000
    # Rank 0 finds both models there; it has only its own second message to hand over to the interface.
    assert returns(trace) == [late + TAKEN + OVERHEAD, late + TAKEN + MESSAGE, 1000 + TAKEN + MESSAGE, late + MESSAGE]


@pytest.mark.parametrize("out_neighbours", [1, 2, 3])
def test_sgp_by_hand(out_neighbours: int) -> None:
    """Every rank's last message comes behind the others in its sender's interface, and goes to one that waits for it."""
    own = {"sgp": {"out_neighbours": out_neighbours}}
    trace = run("sgp", 8, network=BY_HAND, algorithms=own)
    assert returns(trace) == [1000 + (out_neighbours - 1) * TAKEN + MESSAGE] * 8


def test_a_busy_interface_holds_back_the_next_exchange() -> None:
    """Interfaces are taken for 5 us, a message is there after 10 ns: the second iteration's leaves when the first's gap is over."""
    trace = run("d_psgd", 2, iterations=3, network={"latency_ns": 10, "gap_ns": 5000})
    assert [returns(trace, t)[0] for t in range(3)] == [1010, 6010, 11_010]


def test_swarm_by_hand() -> None:
    """Two ranks ask each other at once: each is served while it waits, and answers as its interface allows."""
    assert returns(run("swarm_sgd", 2, iterations=1, network=BY_HAND)) == [1000 + 2 * MESSAGE] * 2
    busy = {**BY_HAND, "gap_ns": 5000}
    taken = 5000 + 399 * PER_BYTE
    assert returns(run("swarm_sgd", 2, iterations=1, network=busy)) == [1000 + taken + MESSAGE] * 2


def test_ad_psgd_by_hand() -> None:
    """Ranks 0 and 2 ask rank 1 at once, at the beginning; it answers one after the other."""
    trace = run("ad_psgd", 3, iterations=1, network=BY_HAND)
    assert returns(trace) == [1000] * 3
    assert [x.completed_ns for x in trace.exchanges if x.role == "passive"] == [MESSAGE] * 2
    asked = {x.rank: x.completed_ns for x in trace.exchanges if x.role == "active"}
    assert asked == {0: 2 * MESSAGE, 2: 2 * MESSAGE + TAKEN}


BOTH = {"ad_psgd": {"all_ask": True, "await_averaging": True}}


def test_ad_psgd_in_which_all_ask_by_hand() -> None:
    """Two ranks ask each other at the beginning and serve each other while they wait; a gradient takes less time than that."""
    trace = run("ad_psgd", 2, iterations=3, network=BY_HAND, algorithms=BOTH)
    assert [returns(trace, t) for t in range(3)] == [[2 * MESSAGE * (t + 1)] * 2 for t in range(3)]
    assert {record.arrival_ns - (record.return_ns - 2 * MESSAGE) for record in trace.iterations} == {1000}
    # Where averaging is the shorter one it costs nothing.
    trace = run("ad_psgd", 2, iterations=3, network=BY_HAND, algorithms=BOTH, compute={"kind": "constant", "seconds": 1e-5})
    assert [returns(trace, t) for t in range(3)] == [[10_000 * (t + 1)] * 2 for t in range(3)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 6, 9])
def test_ad_psgd_in_which_all_ask_and_wait_ends_and_keeps_the_mean(ranks: int) -> None:
    network = {"latency_ns": 4000, "gap_ns": 900, "overhead_ns": 70}
    start = draws(ranks)
    for seed in range(3):
        numerics, trace = swarm("ad_psgd", start, 60, imbalance=STRAGGLERS, network=network, seed=seed, algorithms=BOTH)
        assert not validate(trace)
        for rank in range(ranks if ranks > 1 else 0):
            asked = [x for x in trace.exchanges if x.rank == rank and x.role == "active"]
            assert [x.version for x in asked] == list(range(60))
            assert all((x.to[0] - rank) % 2 for x in asked), "a partner on the same side"
        assert numerics.models.mean(axis=0) == pytest.approx(np.mean(start, axis=0), abs=1e-14)


def test_a_barrier_by_hand() -> None:
    """P=5: three hops of the control channel after the last one."""
    slow = [{"kind": "fixed", "ranks": [2], "delay_s": 1e-3}]
    own = {"d_psgd": {"global_clock": True}}
    trace = run("d_psgd", 5, iterations=1, imbalance=slow, network={**BY_HAND, "activation_ns": 7}, algorithms=own)
    assert returns(trace) == [1_001_000 + 3 * 7 + TAKEN + MESSAGE] * 5


# -- the same again, and defects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", GOSSIP)
def test_runs_are_reproducible_and_depend_on_the_seed(algorithm: str) -> None:
    def lines(seed: int) -> list[str]:
        trace = run(algorithm, 5, imbalance=STRAGGLERS, network=NETWORK, seed=seed)
        return [json.dumps([x.rank, x.version, x.to, x.completed_ns, x.result_digest]) for x in trace.exchanges]

    assert lines(1) == lines(1)
    assert lines(1) != lines(2)


@pytest.mark.parametrize("ranks", [1, 4])
def test_all_algorithms_simulate(ranks: int) -> None:
    results = wagma.simulate(wagma.load_scenario("resnet50_imagenet", {"iterations": 5}), "all", ranks=ranks)
    assert [result.algorithm for result in results] == list(ALGORITHMS)
    assert {*GOSSIP} <= set(ALGORITHMS)


def defective(kind: str) -> Any:
    def algorithm(rank: RankView) -> Algorithm:
        others = tuple(other for other in range(3) if other != rank.rank)
        for t in rank.iterations:
            yield ComputeGradient(t)
            match kind:
                case "unanswered":
                    yield Exchange(t, Value.MODEL, to=others[:1], sources=others)
                case "unasked":
                    yield Exchange(t, Value.MODEL, to=others, sources=others[:1])
                case "barrier" if rank.rank != 1:
                    yield Barrier(t)
                case "alone":
                    yield PairAverage(t, rank.rank)

    return algorithm


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unanswered", r"stuck at \d+ ns: rank 1 waits in iteration 0 for the models of ranks \[2\]"),
        ("unasked", r"rank 0 never took the models that ranks \[2\] sent it in iteration 0"),
        ("barrier", r"stuck at 2000 ns: ranks \[0, 2\] wait at the barrier of iteration 0 for ranks \[1\]"),
        ("alone", r"asks for an average with itself"),
    ],
)
def test_what_can_never_end_is_reported_by_name(kind: str, message: str) -> None:
    with registered("defective", defective(kind)), pytest.raises(WagmaError, match=message):
        simulate(read(scenario_table(3, 2), "defective"), "defective", Symbols(3))


# -- settings, and the real world ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "key", "value", "allowed"),
    [
        ("sgp", "out_neighbours", 0, "at least 1"),
        ("swarm_sgd", "local_steps", 0, "at least 1"),
        ("swarm_sgd", "local_steps", 1.5, "a whole number"),
        ("d_psgd", "global_clock", 1, "true or false"),
        ("d_psgd", "out_neighbours", 1, "unknown key"),
        ("ad_psgd", "local_steps", 1, "unknown key"),
    ],
)
def test_settings_are_checked(algorithm: str, key: str, value: object, allowed: str) -> None:
    with pytest.raises(InputError, match=rf"algorithms\.{algorithm}\.{key} = .*{allowed}"):
        read(scenario_table(3, 2, algorithms={algorithm: {key: value}}), "settings")


def test_all_algorithms_of_a_real_run_are_all() -> None:
    options = parser().parse_args(["train", "digits", "--algorithms", "all"])
    assert [name for _, name in train._plan(options, 2)] == list(ALGORITHMS)


@pytest.mark.parametrize("algorithm", GOSSIP)
def test_models_that_no_collective_averages_cannot_be_resident(algorithm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, before any rank is started."""
    assert main(["train", "digits", "-n", "2", "--resident", "--algorithms", f"wagma_sgd,{algorithm}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line == (
        f"wagma: error: resident = True: {algorithm} averages no models in collectives; must be False, or the algorithm one of "
        "local_sgd, wagma_sgd"
    )


@pytest.mark.parametrize("algorithm", GOSSIP)
def test_synthetic_traces_have_collectives_only(algorithm: str) -> None:
    with pytest.raises(InputError, match=rf"algorithm = '{algorithm}': .* allowed: those with collectives"):
        synthetic_trace(3, 1, 1, 4, seed=1, algorithm=algorithm)


def test_more_out_neighbours_than_ranks_are_all_of_them() -> None:
    trace = run("sgp", 3, iterations=2, algorithms={"sgp": {"out_neighbours": 8}})
    assert {tuple(x.to) for x in trace.exchanges if x.rank == 0} == {(1, 2)}
