"""The simulator's clock against schedules computed by hand, to the nanosecond, and against the paper's closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wagma.core.protocol import NONE
from wagma.results import summarize
from wagma.scenario import Network, load, read
from wagma.sim.driver import simulate
from wagma.sim.exchange import phases
from wagma.sim.numerics import Nothing, Symbols
from wagma.trace import Iteration, Trace
from wagma.validate import validate

LATENCY, OVERHEAD, GAP, PER_BYTE = 1000, 100, 300, 2
HOP = LATENCY + 2 * OVERHEAD
SIZE = 400  # bytes: 100 float32
MESSAGE = HOP + (SIZE - 1) * PER_BYTE


def table(ranks: int, iterations: int = 1, **changes: Any) -> dict[str, Any]:
    """A small scenario: everybody computes for 1 us."""
    return {
        "name": "by_hand",
        "ranks": ranks,
        "iterations": iterations,
        "model": {"parameters": SIZE // 4},
        "work": {"per_rank": 1, "unit": "steps"},
        "compute": {"kind": "constant", "seconds": 1e-6},
        "network": {
            "latency_ns": LATENCY,
            "overhead_ns": OVERHEAD,
            "gap_ns": GAP,
            "gap_per_byte_ns": PER_BYTE,
            "allreduce": "butterfly",
        },
        **changes,
    }


def run(ranks: int, name: str, iterations: int = 1, **changes: Any) -> Trace:
    return simulate(read(table(ranks, iterations, **changes), "test"), name, Symbols(ranks))


def by_rank(trace: Trace, iteration: int = 0) -> list[Iteration]:
    return [record for record in trace.iterations if record.iteration == iteration]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_balanced_allreduce_takes_log_p_messages(ranks: int) -> None:
    trace = run(ranks, "allreduce_sgd")
    assert {record.return_ns for record in trace.iterations} == {1000 + int(math.log2(ranks)) * MESSAGE}


def test_halving_doubling_by_hand() -> None:
    """P=4: 200 and 100 bytes out, 100 and 200 bytes back; a phase waits for its message only, never for the interface."""
    changed = table(4)["network"] | {"allreduce": "halving_doubling"}
    trace = run(4, "allreduce_sgd", network=changed)
    halves, quarters = HOP + 199 * PER_BYTE, HOP + 99 * PER_BYTE
    assert {record.return_ns for record in trace.iterations} == {1000 + 2 * halves + 2 * quarters}


def test_a_length_that_is_no_power_of_two_folds_its_extra_member() -> None:
    """P=3: rank 2 hands its value to rank 0, which meets rank 1, and gets the sum back."""
    trace = run(3, "allreduce_sgd")
    met = 1000 + MESSAGE  # rank 0 has both other values, rank 1's came early; it sends to rank 1
    taken = GAP + (SIZE - 1) * PER_BYTE  # and when its interface is free again, to rank 2
    finished = [met + taken + OVERHEAD, met + MESSAGE, met + taken + MESSAGE]
    assert [record.return_ns for record in by_rank(trace)] == finished


def test_the_gap_holds_back_the_next_message_of_the_same_sender() -> None:
    """One byte a message, no bytes to stream: the second phase leaves when the first one's gap is over, if that is later."""
    network = {"latency_ns": 10, "overhead_ns": 0, "gap_ns": 500, "gap_per_byte_ns": 0, "allreduce": "butterfly"}
    trace = run(4, "allreduce_sgd", network=network)
    # Phase 0 ends 10 ns after it began, the interfaces are taken for 500: the second message leaves at 500.
    assert {record.return_ns for record in trace.iterations} == {1000 + 500 + 10}


def test_wait_avoiding_collective_by_hand() -> None:
    """P=4, S=2, rank 3 delayed by 1 ms: its group starts passively when the activation has reached it."""
    delay = {"kind": "exactly", "count": 1, "delay_s": 1e-3}
    trace = run(4, "wagma_sgd", seed=3, imbalance=[delay], algorithm={"group_size": 2})
    late = next(record.rank for record in trace.iterations if record.delayed_ns)
    executions = {e.rank: e for e in trace.executions}
    passive = executions[late]
    # Everyone else arrives at 1000 and is an activator; dimension 0 brings the activation to the late rank one hop later.
    assert passive.activated_ns == passive.started_ns == 1000 + HOP
    assert passive.own_stamp == NONE
    assert not passive.activator
    partner = next(rank for rank in passive.group if rank != late)
    # The late rank's contribution leaves when it starts; its partner's message is there one message after 1000.
    assert passive.completed_ns == max(1000 + MESSAGE, 1000 + HOP + OVERHEAD)
    assert executions[partner].completed_ns == 1000 + HOP + MESSAGE
    others = {e.completed_ns for rank, e in executions.items() if rank not in (late, partner)}
    assert others == {1000 + MESSAGE}
    arrived = by_rank(trace)[late]
    assert (arrived.arrival_ns, arrived.return_ns, arrived.fresh, arrived.merged_version) == (1_001_000, 1_001_000, False, 0)
    assert not validate(trace)


def test_at_equal_times_arrivals_precede_starts() -> None:
    """The activation reaches rank 1 at the nanosecond of its own arrival: its model is fresh."""
    delay = {"kind": "exactly", "count": 1, "delay_s": HOP * 1e-9}
    trace = run(2, "wagma_sgd", imbalance=[delay], algorithm={"group_size": 2})
    assert all(record.fresh for record in trace.iterations)
    later = {"kind": "exactly", "count": 1, "delay_s": (HOP + 1) * 1e-9}
    trace = run(2, "wagma_sgd", imbalance=[later], algorithm={"group_size": 2})
    assert [bool(record.fresh) for record in trace.iterations].count(False) == 1


@pytest.mark.parametrize("kind", ["butterfly", "halving_doubling"])
@pytest.mark.parametrize("length", range(1, 34))
def test_every_message_is_expected_by_its_receiver(kind: str, length: int) -> None:
    plan = phases(kind, length, 1 << 20)
    sent = {(phase.to, phase.to_phase) for member in plan for phase in member if phase.to is not None}
    expected = {(i, n) for i, member in enumerate(plan) for n, phase in enumerate(member) if phase.waits}
    assert sent == expected
    assert sum(phase.to is not None for member in plan for phase in member) == len(sent)


def test_network_rounds_once() -> None:
    import simpy

    from wagma.sim.network import LogGP

    network = LogGP(simpy.Environment(0), 1, Network(0.4, 0.4, 0.4, 0.1, 0.0))
    assert network.durations(11) == (round(0.8 + 0.4 + 1.0), round(0.4 + 1.0))


FREE = {f"network.{key}": 0 for key in ("latency_ns", "overhead_ns", "gap_ns", "gap_per_byte_ns")}


def test_free_synchronous_iteration_matches_the_closed_form() -> None:
    """W's program: 0.62 s + 0.32 s (1 - (1 - 1/P)^(2P)) = 0.897 s at 64 ranks; figure 4 shows 0.895 s."""
    iterations = 1000
    trace = simulate(load("resnet50_imagenet", {**FREE, "ranks": 64, "iterations": iterations}), "allreduce_sgd", Nothing())
    hit = 1 - (1 - 1 / 64) ** 128
    expected = 0.62 + 0.32 * hit
    assert expected == pytest.approx(0.897, abs=5e-4)
    deviation = 0.32 * math.sqrt(hit * (1 - hit) / iterations)
    assert summarize(trace).iteration_mean_s == pytest.approx(expected, abs=3 * deviation)


def test_two_always_delayed_ranks_cost_every_iteration() -> None:
    """The other delay model, the paper's prose: exactly two ranks in every iteration."""
    two = [{"kind": "exactly", "count": 2, "delay_s": 0.32}]
    trace = simulate(
        load("resnet50_imagenet", {**FREE, "ranks": 64, "iterations": 20, "imbalance": two}), "allreduce_sgd", Nothing()
    )
    assert summarize(trace).iteration_mean_s == pytest.approx(0.94, abs=1e-9)
    delayed = [sum(record.delayed_ns > 0 for record in by_rank(trace, t)) for t in range(20)]
    assert set(delayed) == {2}


@pytest.mark.parametrize("ranks", [4, 16, 64, 256])
def test_the_paper_scenario_runs_at_every_scale_with_the_order_of_figure_4(ranks: int) -> None:
    scenario = load("resnet50_imagenet", {"ranks": ranks, "iterations": 40})
    throughput = {
        name: summarize(simulate(scenario, name, Nothing())).throughput for name in ("ideal", "wagma_sgd", "allreduce_sgd")
    }
    assert throughput["ideal"] > throughput["wagma_sgd"] > throughput["allreduce_sgd"]


def test_without_imbalance_wagma_gains_nothing() -> None:
    """W's balanced control: all within noise; here the smaller groups save communication only."""
    scenario = load("resnet50_imagenet", {"ranks": 64, "iterations": 20, "imbalance": [], **FREE})
    figures = {
        name: summarize(simulate(scenario, name, Nothing())).throughput for name in ("wagma_sgd", "allreduce_sgd", "ideal")
    }
    assert figures["wagma_sgd"] == pytest.approx(figures["allreduce_sgd"]) == pytest.approx(figures["ideal"])
