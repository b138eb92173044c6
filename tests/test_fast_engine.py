"""The fast engine against the SimPy engine, to the nanosecond: every arrival, activation, start and completion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engines import COVERED, assert_agree, measured, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wagma
from wagma.api import columns, figures
from wagma.core.groups import all_groups, is_power_of_two
from wagma.errors import InputError
from wagma.results import summarize
from wagma.scenario import Scenario, read
from wagma.sim import driver, fast
from wagma.sim.fast.activation import Activation
from wagma.sim.fast.exchange import riffle_groups
from wagma.sim.numerics import Nothing


@st.composite
def scenarios(draw: st.DrawFn, algorithm: str, largest: int = 20) -> Scenario:
    """Anything small: few and short times make many ties, zeros in the network still more."""
    ranks = draw(st.integers(2, largest), label="ranks")
    computes = [
        {"kind": "constant", "seconds": draw(st.sampled_from([1e-9, 1e-7, 1e-6]))},
        {"kind": "samples", "seconds": [1e-9, 2e-9]},
        {"kind": "samples", "seconds": [1e-7, 2e-7, 5e-7]},
        {"kind": "scipy", "distribution": "expon", "loc": 1e-8, "scale": 1e-6},
        {"kind": "mixture", "components": [
            {"weight": 3, "kind": "constant", "seconds": 1e-7}, {"weight": 1, "kind": "constant", "seconds": 4e-6},
        ]},
    ]  # fmt: skip
    delays = [
        [],
        [{"kind": "independent", "probability": 0.2, "delay_s": draw(st.sampled_from([1e-7, 1e-6, 5e-6]))}],
        [{"kind": "fixed", "count": 1, "delay_s": 3e-6}],
        [{"kind": "exactly", "count": 1, "delay_s": 2e-6}, {"kind": "linear", "delay_s": 1e-6}],
    ]
    network: dict[str, Any] = {
        "latency_ns": draw(st.sampled_from([0, 1, 3, 100, 1000])),
        "overhead_ns": draw(st.sampled_from([0, 1, 50, 400])),
        "gap_ns": draw(st.sampled_from([0, 1, 300, 2000])),
        "gap_per_byte_ns": draw(st.sampled_from([0, 0.5, 1, 10])),
        "group_allreduce": draw(st.sampled_from(["butterfly", "halving_doubling"])),
        "allreduce": draw(st.sampled_from(["butterfly", "halving_doubling"])),
        "overlap": draw(st.sampled_from([0, 0, 0, 0.3, 0.9])),
        "reduce_ns_per_byte": draw(st.sampled_from([0, 0, 0, 0.3, 7])),
    }
    if (hop := draw(st.sampled_from([None, 0, 10, 3000]))) is not None:
        network["activation_ns"] = hop
    period = st.sampled_from([1, 2, 3, 5, 10] if algorithm == "local_sgd" else ["never", 1, 2, 3, 5, 10])
    own = {
        "sgp": {"out_neighbours": draw(st.integers(1, 4)), "global_clock": draw(st.booleans())},
        "d_psgd": {"global_clock": draw(st.booleans())},
        "eager_sgd": {"initiators": draw(st.integers(1, ranks))},
    }
    return read(
        table(
            ranks, draw(st.integers(1, 16)), seed=draw(st.integers(0, 2**32)),
            model={"parameters": draw(st.sampled_from([1, 3, 25]))},
            compute=draw(st.sampled_from(computes)), imbalance=draw(st.sampled_from(delays)), network=network,
            algorithm={
                "group_size": draw(st.integers(1, ranks)), "sync_period": draw(period), "merge_once": draw(st.booleans()),
                "groups": draw(st.sampled_from(["changing", "changing", "fixed"])),
            },
            algorithms={algorithm: own[algorithm]} if algorithm in own else {},
        ),
        "drawn",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", COVERED)
def test_both_engines_agree_on_everything(algorithm: str) -> None:
    effort = {"wagma_sgd": 100, "eager_sgd": 60}.get(algorithm, 30)

    @settings(max_examples=effort, deadline=None, suppress_health_check=list(HealthCheck))
    @given(scenarios(algorithm))
    def agree(scenario: Scenario) -> None:
        reason = None
        try:
            assert_agree(scenario, algorithm)
        except fast.Unfit as unfit:
            reason = str(unfit)
        # Which has to be one of these two, and no excuse.
        assert reason is None or "overtakes" in reason or (scenario.network.overlap and "less than a nanosecond" in reason)

    agree()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [64, 100])
@pytest.mark.parametrize("algorithm", COVERED)
def test_they_agree_at_larger_scale(ranks: int, algorithm: str) -> None:
    changes = {"imbalance": [{"kind": "independent", "probability": 0.05, "delay_s": 2e-6}]}
    assert_agree(read(table(ranks, 11, **changes), "larger"), algorithm)


def test_they_agree_on_the_paper_scenario() -> None:
    scenario = wagma.load_scenario("resnet50_imagenet", {"ranks": 16, "iterations": 25})
    for algorithm in COVERED:
        assert_agree(scenario, algorithm)


def test_results_are_the_same_whatever_the_engine() -> None:
    scenario = read(table(12, 20), "same")
    for algorithm in COVERED:
        quick, slow = figures(scenario, algorithm, "fast").as_json(), figures(scenario, algorithm, "simpy").as_json()
        assert (quick.pop("engine"), slow.pop("engine")) == ("fast", "simpy")
        quick.pop("wall_s"), slow.pop("wall_s")
        assert quick == slow
        assert summarize(columns(scenario, algorithm)).as_json()["throughput"] == quick["throughput"]


# -- what is hard about activations ------------------------------------------------------------------------------------------


def test_a_rank_that_is_activated_starts_no_tree_of_its_own() -> None:
    """9 ranks: 0 activates at 1 ns, rank 8 a hop later, before its own arrival, which would have reached rank 7 in one more hop."""
    rows = [[1, 100_000] for _ in range(9)]
    for rank in range(1, 9):
        rows[rank][0] = 100_000
    rows[8][0] = 102
    scenario = read(table(9, 2, compute=measured(rows), network={"activation_ns": 100}, algorithm={"group_size": 1}), "nine")
    run = assert_agree(scenario, "wagma_sgd")
    assert run.activated_ns[0, 8] == 101
    assert run.activated_ns[0, 7] == 301, "over 1, 3 and 7; not over 8, which was no activator"
    assert run.activator[0].tolist() == [True] + [False] * 8
    # All as sources, the sweep alone would have it wrong: it is the settling that keeps rank 8 out.
    activation = Activation(9, 100)
    arrivals = np.array([row[0] for row in rows], np.int64)
    assert activation._sweep(arrivals)[7] == 202
    assert activation.reach(arrivals, None)[0][7] == 301


def overtaking() -> Scenario:
    """As before, and rank 8 then activates the next version at once: that one is at rank 7 before the first one."""
    rows = [[1, 100_000]] + [[100_000, 100_000] for _ in range(7)] + [[102, 1]]
    return read(table(9, 2, compute=measured(rows), network={"activation_ns": 100}, algorithm={"group_size": 1}), "overtaking")


def test_an_activation_that_overtakes_another_one_is_noticed() -> None:
    with pytest.raises(fast.Unfit, match="the activation of version 1 overtakes an earlier one at rank 7"):
        fast.simulate(overtaking(), "wagma_sgd")
    with pytest.raises(InputError, match=r'overtaking: wagma_sgd: nothing for engine = "fast": .* allowed: simpy, auto'):
        figures(overtaking(), "wagma_sgd", "fast")
    assert figures(overtaking(), "wagma_sgd").engine == "simpy"
    trace = driver.simulate(overtaking(), "wagma_sgd", Nothing())
    assert {e.version: e.activated_ns for e in trace.executions if e.rank == 7} == {0: 203, 1: 203}


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 32])
def test_among_powers_of_two_no_detour_is_shorter(ranks: int) -> None:
    """What makes one sweep exact there: ways from a to c are never longer than over b. The sweep finds that shortest way."""
    activation = Activation(ranks, 1)
    ways = np.array([activation._sweep(np.where(np.arange(ranks) == a, 0, 1000)) for a in range(ranks)])
    assert (ways == [[(a ^ b).bit_count() for b in range(ranks)] for a in range(ranks)]).all()
    assert (ways[:, None, :] <= ways[:, :, None] + ways[None, :, :]).all()


def test_among_nine_ranks_a_detour_is_shorter() -> None:
    activation = Activation(9, 1)
    ways = np.array([activation._sweep(np.where(np.arange(9) == a, 0, 1000)) for a in range(9)])
    assert ways[0, 8] + ways[8, 7] == 2 < ways[0, 7] == 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
def test_groups_as_tables_are_those_of_the_core(ranks: int, size: int, version: int) -> None:
    size = min(size, ranks)
    if size == ranks or (is_power_of_two(ranks) and is_power_of_two(size)):
        return
    tables = riffle_groups(ranks, size, version)
    found = [tuple(row) for groups in tables for row in groups.tolist()]
    assert sorted(found) == sorted(all_groups(ranks, size, version))
