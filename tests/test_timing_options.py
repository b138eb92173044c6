"""Timing options beyond the base model: off by default, each by hand to the nanosecond, each with what is refused, and together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from wagma.draws import uniform
from wagma.results import summarize
from wagma.scenario import Scenario, load, read
from wagma.sim import fast
from wagma.sim.driver import simulate
from wagma.sim.numerics import Nothing, Symbols
from wagma.timing.imbalance import Times
from wagma.timing.network import Network, contention
from wagma.timing.noise import MANY, Noise
from wagma.timing.presets import NETWORKS
from wagma.trace import Trace
from wagma.validate import validate

LATENCY, OVERHEAD, GAP, PER_BYTE = 1000, 100, 300, 2
HOP = LATENCY + 2 * OVERHEAD
SIZE = 400  # bytes: 100 float32
MESSAGE = HOP + (SIZE - 1) * PER_BYTE
TAKEN = GAP + (SIZE - 1) * PER_BYTE
BASE = {
    "latency_ns": LATENCY,
    "overhead_ns": OVERHEAD,
    "gap_ns": GAP,
    "gap_per_byte_ns": PER_BYTE,
    "allreduce": "butterfly",
}
ALGORITHMS = ("wagma_sgd", "allreduce_sgd", "local_sgd", "eager_sgd", "d_psgd", "sgp", "ad_psgd", "swarm_sgd")


def scenario(ranks: int, iterations: int = 1, network: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    """Everybody computes for 1 us."""
    table = {
        "name": "by_hand",
        "ranks": ranks,
        "iterations": iterations,
        "model": {"parameters": SIZE // 4},
        "work": {"per_rank": 1, "unit": "steps"},
        "compute": {"kind": "constant", "seconds": 1e-6},
        "network": {**BASE, **(network or {})},
        **changes,
    }
    return read(table, "test")


def run(ranks: int, name: str, iterations: int = 1, network: dict[str, Any] | None = None, **changes: Any) -> Trace:
    return simulate(scenario(ranks, iterations, network, **changes), name, Symbols(ranks))


def returns(trace: Trace) -> list[int]:
    return [record.return_ns for record in trace.iterations]


def times(trace: Trace) -> list[Any]:
    """All that a trace says about time and order."""
    executed = [
        (e.rank, e.sequence, e.version, e.activator, e.activated_ns, e.started_ns, e.completed_ns, e.own_stamp)
        for e in trace.executions
    ]
    iterated = [
        (i.rank, i.sequence, i.iteration, i.arrival_ns, i.return_ns, i.fresh, i.merged_version) for i in trace.iterations
    ]
    return executed + iterated


DELAYS = [{"kind": "independent", "probability": 0.3, "delay_s": 3e-6}]
NEUTRAL: list[dict[str, Any]] = [
    {"ranks_per_node": 4},  # without [network.node] a node costs what the network costs
    {"ranks_per_node": 4, "placement": "round_robin"},
    {"ranks_per_node": 1, "node": {"latency_ns": 1}, "shared_interface": True},
    {"pod_nodes": 4},  # without taper
    {"pod_nodes": 16, "taper": 8},  # all ranks in one pod
    {"reduce_ns_per_byte": 0, "progress_computing_ns": 0, "progress_waiting_ns": 0, "overlap": 0},
]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_options_that_say_nothing_change_nothing(name: str) -> None:
    expected = times(run(8, name, 12, imbalance=DELAYS))
    for network in NEUTRAL:
        assert times(run(8, name, 12, network, imbalance=DELAYS)) == expected, network
    for noise in ({}, {"detours_per_s": 0, "detour_s": 0}):
        assert times(run(8, name, 12, imbalance=DELAYS, noise=noise)) == expected


# -- cost of reductions --------------------------------------------------------------------------------------------------------

ADD = SIZE * 3


def test_butterfly_adds_the_whole_value_in_each_phase() -> None:
    trace = run(8, "allreduce_sgd", network={"reduce_ns_per_byte": 3})
    assert set(returns(trace)) == {1000 + 3 * (MESSAGE + ADD)}


def test_halving_doubling_adds_on_the_way_down_only() -> None:
    trace = run(4, "allreduce_sgd", network={"reduce_ns_per_byte": 3, "allreduce": "halving_doubling"})
    halves, quarters = HOP + 199 * PER_BYTE, HOP + 99 * PER_BYTE
    assert set(returns(trace)) == {1000 + 2 * halves + 2 * quarters + 3 * (200 + 100)}


def test_an_extra_member_is_added_too_and_gets_the_sum_for_nothing() -> None:
    """P=3: rank 2 hands its value in to rank 0, whose sum with it delays what it sends to rank 1."""
    trace = run(3, "allreduce_sgd", network={"reduce_ns_per_byte": 3})
    handed_in = 1000 + MESSAGE + ADD
    early = handed_in + OVERHEAD + ADD  # rank 1's value has come before: rank 0 adds it as soon as its own message has left
    leaves = max(handed_in + TAKEN, early)
    assert returns(trace) == [leaves + OVERHEAD, handed_in + MESSAGE + ADD, leaves + MESSAGE]


def test_neighbours_models_are_added_when_all_are_there() -> None:
    trace = run(4, "d_psgd", network={"reduce_ns_per_byte": 3})
    plain = run(4, "d_psgd")
    assert returns(trace) == [at + 2 * ADD for at in returns(plain)]


def test_adding_is_rounded_once() -> None:
    assert Network(reduce_ns_per_byte=0.3).adding_ns(5) == round(1.5)


@pytest.mark.parametrize("name", ["wagma_sgd", "allreduce_sgd", "local_sgd", "d_psgd", "sgp", "eager_sgd"])
@pytest.mark.parametrize("ranks", [3, 7, 8, 16])
def test_both_engines_add_up_alike(name: str, ranks: int) -> None:
    network = {"reduce_ns_per_byte": 0.7, "pod_nodes": 3, "taper": 2.5, "overlap": 0.3, "allreduce": "halving_doubling"}
    one = scenario(ranks, 12, network, imbalance=DELAYS, noise={"detours_per_s": 1e5, "detour_s": 1e-6}, seed=5)
    assert fast.unfit(one, name) is None
    columns = fast.simulate(one, name, columns=True)
    trace = simulate(one, name, Nothing())
    for record in trace.iterations:
        found = columns.arrival_ns[record.iteration, record.rank], columns.return_ns[record.iteration, record.rank]
        assert found == (record.arrival_ns, record.return_ns), record


# -- contention ----------------------------------------------------------------------------------------------------------------


def test_contention_by_hand() -> None:
    """8 nodes in pods of 4: 4 of 7 partners are elsewhere. Taper 2: the four nodes of a pod want 16/7 and get 2."""
    assert contention(8, 4, 2.0) == 8 / 7
    assert contention(8, 4, 1.0) == 1.0
    assert contention(8, 4, 1.5) == 1.0  # 6/7 of what would be too much
    assert contention(4, 4, 100.0) == 1.0
    assert contention(1, 1, 5.0) == 1.0
    assert contention(10**6, 1, 3.0) == 3.0


def test_contention_stretches_every_byte_and_nothing_else() -> None:
    trace = run(8, "allreduce_sgd", network={"pod_nodes": 4, "taper": 3.5, "gap_per_byte_ns": 2})
    message = HOP + (SIZE - 1) * 4  # 3.5 * 4/7 = 2
    assert set(returns(trace)) == {1000 + 3 * message}


def test_contention_grows_with_the_nodes_and_never_beyond_the_taper() -> None:
    factors = [contention(n, 16, 4.0) for n in (8, 16, 32, 64, 256, 1024, 10**6)]
    assert factors == sorted(factors)
    assert factors[1] == 1 < factors[2]
    assert factors[-1] < 4


def test_contention_counts_nodes_not_ranks() -> None:
    assert scenario(16, network={"ranks_per_node": 4, "pod_nodes": 4, "taper": 4}).network.gap_per_byte_ns == PER_BYTE
    assert scenario(16, network={"pod_nodes": 4, "taper": 4}).network.gap_per_byte_ns == PER_BYTE * 4 * 12 / 15


# -- nodes ---------------------------------------------------------------------------------------------------------------------

NODE = {"latency_ns": 50, "overhead_ns": 10, "gap_ns": 20, "gap_per_byte_ns": 0.5}
INSIDE = 270  # 50 + 2 * 10 + 399 * 0.5 = 269.5, rounded half to even


def test_messages_within_a_node_take_its_own_time() -> None:
    block = run(4, "allreduce_sgd", network={"ranks_per_node": 2, "node": NODE})
    assert set(returns(block)) == {1000 + INSIDE + MESSAGE}  # phase 0 within the node, phase 1 between nodes
    dealt = run(4, "allreduce_sgd", network={"ranks_per_node": 2, "node": NODE, "placement": "round_robin"})
    assert set(returns(dealt)) == {1000 + MESSAGE + INSIDE}  # the other way round
    whole = run(4, "allreduce_sgd", network={"ranks_per_node": 4, "node": NODE})
    assert set(returns(whole)) == {1000 + 2 * INSIDE}


def test_keys_that_a_node_does_not_have_are_the_networks() -> None:
    network = scenario(4, network={"ranks_per_node": 2, "node": {"latency_ns": 7}}).network
    assert network.node is not None
    assert (network.node.latency_ns, network.node.overhead_ns, network.node.gap_per_byte_ns) == (7, OVERHEAD, PER_BYTE)
    assert network.node.activation_ns == 7 + 2 * OVERHEAD


def test_a_node_has_from_the_network_neither_contention_nor_another_activation_than_it_sets() -> None:
    """Eight nodes in pods of one, taper 4: the network's gap per byte is 4 times as long between nodes, not within them."""
    base = {"ranks_per_node": 2, "pod_nodes": 1, "taper": 4, "activation_ns": 5000, "node": {"overhead_ns": 1}}
    network = scenario(16, network=base).network
    assert network.node is not None
    assert (network.gap_per_byte_ns, network.node.gap_per_byte_ns) == (4 * PER_BYTE, PER_BYTE)
    assert (network.activation_ns, network.node.activation_ns) == (5000, 5000)
    other = scenario(16, network={**base, "node": {"activation_ns": 7, "gap_per_byte_ns": 1}}).network.node
    assert other is not None
    assert (other.activation_ns, other.gap_per_byte_ns) == (7, 1)


def test_activations_within_a_node_take_its_own_time() -> None:
    """P=2 in one node, rank 1 late by 1 ms: its activation takes a hop within the node."""
    late = [{"kind": "fixed", "ranks": [1], "delay_s": 1e-3}]
    algorithm = {"group_size": 2}
    for network, hop in ({"ranks_per_node": 2, "node": {"activation_ns": 33}}, 33), ({"ranks_per_node": 2, "node": NODE}, 70):
        trace = run(2, "wagma_sgd", network=network, imbalance=late, algorithm=algorithm)
        assert [e.activated_ns for e in trace.executions] == [1000, 1000 + hop]


def test_the_channel_within_a_node_is_not_held_back_by_the_interface() -> None:
    """A ring of 4 in nodes of 2: a rank sends to its node's other rank and to another node, both at once."""
    trace = run(4, "d_psgd", network={"ranks_per_node": 2, "node": NODE})
    assert set(returns(trace)) == {1000 + MESSAGE}
    plain = run(4, "d_psgd")
    assert set(returns(plain)) == {1000 + TAKEN + MESSAGE}


def test_a_shared_interface_sends_one_message_after_the_other() -> None:
    """P=4 in nodes of 2, dealt out: in phase 0 both ranks of a node (0 and 2, 1 and 3) send to the other one, 0 and 1 first."""
    network = {"ranks_per_node": 2, "placement": "round_robin", "shared_interface": True, "node": NODE}
    trace = run(4, "allreduce_sgd", network=network)
    first, second = 1000 + MESSAGE, 1000 + TAKEN + MESSAGE
    # Phase 1 is within the nodes: 0 and 1 wait for the models of 2 and 3, which are a message later.
    assert returns(trace) == [second + INSIDE, second + INSIDE, second + 10, second + 10]
    assert first + INSIDE < second


def test_a_processor_hands_one_message_over_after_the_other() -> None:
    """LogGP: the next message leaves no sooner than the overhead of the one before is over, however soon the interface is free."""
    network = {"latency_ns": 100, "overhead_ns": 1000, "gap_ns": 0, "gap_per_byte_ns": 0}
    one = scenario(4, network=network)
    # The first from 1000 to 2000, the second to 3000; there 100 + 1000 later.
    assert returns(simulate(one, "d_psgd", Nothing())) == [4100] * 4
    assert fast.simulate(one, "d_psgd", columns=True).return_ns.tolist() == [[4100] * 4]
    assert not validate(simulate(one, "d_psgd", Symbols(4)))


def test_a_shared_interface_takes_messages_of_another_processor_meanwhile() -> None:
    """P=4 in nodes of 2, all messages alike: of an interface that ranks share its own time counts, not that of any one processor."""
    network = {
        "latency_ns": 100, "overhead_ns": 1000, "gap_ns": 10, "gap_per_byte_ns": 0, "ranks_per_node": 2, "shared_interface": True,
    }  # fmt: skip
    # Rank 0 to 3 and 1, then 1 to 0 and 2; rank 2 to 1 and 3, then 3 to 2 and 0: at 1000, 1010, 1020, 1030, and 2100 ns on the way.
    assert returns(run(4, "d_psgd", network=network)) == [1030 + 2100, 1010 + 2100, 1030 + 2100, 1010 + 2100]


def test_a_node_that_is_not_full_and_placements() -> None:
    block = Network(ranks_per_node=4, placement="block")
    dealt = Network(ranks_per_node=4, placement="round_robin")
    assert [block.node_of(r, 10) for r in range(10)] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert [dealt.node_of(r, 10) for r in range(10)] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


# -- progress threads ----------------------------------------------------------------------------------------------------------


def test_a_late_rank_answers_when_its_progress_thread_wakes_up() -> None:
    """P=2, rank 1 computes on for 1 ms: the activation and then its partner's message wait for its thread, once."""
    late = [{"kind": "fixed", "ranks": [1], "delay_s": 1e-3}]
    trace = run(2, "wagma_sgd", network={"progress_computing_ns": 5000}, imbalance=late, algorithm={"group_size": 2})
    on_time, passive = trace.executions
    # The activation is there at 1000 + HOP, the message at 1000 + MESSAGE < 1000 + HOP + 5000: both are acted on then.
    assert passive.activated_ns == passive.started_ns == 1000 + HOP + 5000
    assert passive.completed_ns == 1000 + HOP + 5000 + OVERHEAD
    assert on_time.completed_ns == 1000 + HOP + 5000 + MESSAGE  # its application waits, without delay
    waits = run(
        2, "wagma_sgd", network={"progress_computing_ns": 5000, "progress_waiting_ns": 40}, imbalance=late,
        algorithm={"group_size": 2},
    )  # fmt: skip
    assert waits.executions[0].completed_ns == 1000 + HOP + 5000 + MESSAGE + 40


def test_a_thread_acts_on_all_that_is_there_once_the_application_waits() -> None:
    """Rank 1 arrives 500 ns after the activation has come: what comes next is acted on at once, and what has come before with it."""
    late = [{"kind": "fixed", "ranks": [1], "delay_s": (HOP + 100) * 1e-9}]
    trace = run(2, "wagma_sgd", network={"progress_computing_ns": 10**6}, imbalance=late, algorithm={"group_size": 2})
    own = next(e for e in trace.executions if e.rank == 1)
    assert own.activated_ns == own.started_ns == 1000 + HOP + 100
    assert own.activator  # the activation from rank 0 has come, and nobody has acted on it
    assert own.completed_ns == max(1000 + MESSAGE, own.started_ns + OVERHEAD)
    assert trace.iterations[1].fresh


def test_pairs_are_served_by_the_progress_thread() -> None:
    plain, slow = (run(2, "ad_psgd", network={"progress_computing_ns": ns}) for ns in (0, 700))
    served = [[x.completed_ns for x in trace.exchanges] for trace in (plain, slow)]
    assert served[1] == [at + 700 for at in served[0]]


# -- noise ---------------------------------------------------------------------------------------------------------------------


def test_detours_are_poisson_and_delay_the_rank() -> None:
    one = scenario(2000, noise={"detours_per_s": 1000, "detour_s": 1e-4}, compute={"kind": "constant", "seconds": 1e-3}, seed=9)
    delays = Times(2000, 9, one.compute, one.imbalance, one.noise).delay_ns(3)
    u = uniform(9, "noise.detours", np.arange(2000), 3)
    assert delays.tolist() == [round(100_000 * n) for n in stats.poisson.ppf(u, 1.0)]
    assert Times(2000, 9, one.compute, one.imbalance).delay_ns(3).tolist() == [0] * 2000


def test_detours_beyond_counting_are_normal() -> None:
    expected = 100 * MANY
    drawn = Noise(1e6, 1e-6).seconds(1, np.arange(20_000), 0, np.full(20_000, expected / 1e6)) * 1e6
    assert drawn.mean() == pytest.approx(expected, rel=1e-4)
    assert drawn.std() == pytest.approx(expected**0.5, rel=0.03)


def test_noise_per_iteration_adds_to_delays_and_is_recorded_as_delay() -> None:
    noise = {"per_iteration": {"kind": "constant", "seconds": 2e-6}}
    delay = [{"kind": "fixed", "ranks": [0], "delay_s": 5e-6}]
    trace = run(2, "allreduce_sgd", noise=noise, imbalance=delay)
    assert [i.delayed_ns for i in trace.iterations] == [7000, 2000]
    assert [i.arrival_ns for i in trace.iterations] == [8000, 3000]
    assert returns(trace) == [8000 + OVERHEAD, 8000 + MESSAGE]  # rank 1's message has come before
    assert returns(run(2, "ideal", noise=noise, imbalance=delay)) == [1000, 1000]


# -- overlap -------------------------------------------------------------------------------------------------------------------


def test_overlap_hides_communication_behind_the_end_of_the_compute_only() -> None:
    half = run(2, "allreduce_sgd", network={"overlap": 0.5})
    assert {i.arrival_ns for i in half.iterations} == {500}
    assert set(returns(half)) == {500 + MESSAGE}
    long = run(2, "allreduce_sgd", network={"overlap": 0.5}, compute={"kind": "constant", "seconds": 1e-5})
    assert set(returns(long)) == {10_000}  # 5,000 + MESSAGE is sooner: the compute is what takes time


def test_overlap_and_cost_of_reductions() -> None:
    trace = run(2, "allreduce_sgd", network={"overlap": 1.0, "reduce_ns_per_byte": 3})
    assert set(returns(trace)) == {MESSAGE + ADD}


# -- presets -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", NETWORKS)
def test_presets_are_what_their_keys_say_and_single_keys_override_them(preset: str) -> None:
    bare = {"preset": preset}
    table = dict(scenario(16).table) | {"network": bare}
    network = read(table, "test").network
    assert network.latency_ns == NETWORKS[preset]["latency_ns"]
    assert network.activation_ns == network.latency_ns + 2 * network.overhead_ns
    spelled = read({**table, "network": dict(NETWORKS[preset])}, "test").network
    assert spelled == network
    changed = read({**table, "network": {**bare, "latency_ns": 77, "node": {"gap_ns": 5}, "ranks_per_node": 2}}, "test").network
    assert (changed.latency_ns, changed.ranks_per_node) == (77, 2)
    assert changed.gap_per_byte_ns == network.gap_per_byte_ns
    assert changed.node is not None
    assert changed.node.gap_ns == 5
    if network.node is not None:
        assert changed.node.gap_per_byte_ns == network.node.gap_per_byte_ns


def test_faster_networks_are_faster() -> None:
    throughput = []
    for preset in ("ethernet_cloud", "piz_daint", "nvlink_infiniband"):
        one = load("resnet50_imagenet", {"ranks": 16, "iterations": 5, "network": {"preset": preset}})
        throughput.append(summarize(simulate(one, "wagma_sgd", Nothing())).throughput)
    assert throughput == sorted(throughput)


# -- together ------------------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "reduce_ns_per_byte": 0.3, "pod_nodes": 2, "taper": 3, "ranks_per_node": 2, "placement": "round_robin",
    "shared_interface": True, "node": NODE, "progress_computing_ns": 900, "progress_waiting_ns": 70, "overlap": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("ranks", [5, 8])
def test_all_options_together_keep_every_promise(name: str, ranks: int) -> None:
    noise = {"detours_per_s": 1e5, "detour_s": 2e-6, "per_iteration": {"kind": "scipy", "distribution": "expon", "scale": 1e-6}}
    trace = run(ranks, name, 20, EVERYTHING, imbalance=DELAYS, noise=noise)
    assert not validate(trace)
    assert times(trace) == times(run(ranks, name, 20, EVERYTHING, imbalance=DELAYS, noise=noise))


@pytest.mark.parametrize("key", ["ranks_per_node", "progress_computing_ns", "progress_waiting_ns"])
def test_the_fast_engine_says_what_it_does_not_model(key: str) -> None:
    reason = fast.unfit(scenario(4, network={key: 2}), "wagma_sgd")
    assert reason is not None
    assert f"network.{key}" in reason
