"""What the checkers recompute of the algorithms that wagma comes with: models, graphs, activators, times. Legal runs pass."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from points import registered, scenario_table

from wagma.algorithms import ALGORITHMS, Collectives
from wagma.core.effects import Algorithm, ApplyUpdate, Average, ComputeGradient, Exchange, RankView, Value
from wagma.core.symbols import merged, symbol
from wagma.scenario import load, read
from wagma.sim.driver import Run, simulate
from wagma.sim.gossip import Gossip
from wagma.sim.numerics import Symbols
from wagma.trace import Trace
from wagma.validate import report, validate

RANKS, ITERATIONS = 6, 12
OTHER = "0123456789abcdef"  # a digest that no trace has
STRAGGLERS = [{"kind": "independent", "probability": 0.3, "delay_s": 3e-6}]
NETWORK = {"latency_ns": 100, "overhead_ns": 10, "gap_ns": 50, "gap_per_byte_ns": 1.0}
ALL = [
    "ad_psgd", "allreduce_sgd", "d_psgd", "eager_sgd", "ideal", "local_sgd", "sgp", "swarm_sgd", "wagma_sgd",
]  # fmt: skip
COLLECTIVE = ["allreduce_sgd", "eager_sgd", "local_sgd", "wagma_sgd"]


def run(algorithm: str, numerics: Symbols | None = None, **changes: Any) -> Trace:
    table = {"imbalance": STRAGGLERS, "network": NETWORK, "algorithm": {"group_size": 2, "sync_period": 5}, **changes}
    scenario = read(scenario_table(table.pop("ranks", RANKS), ITERATIONS, **table), "models")
    return simulate(scenario, algorithm, numerics or Symbols(scenario.ranks))


@functools.cache
def base(algorithm: str) -> Trace:
    trace = run(algorithm)
    assert validate(trace) == []
    return trace


def broken(trace: Trace) -> set[int]:
    violations = validate(trace)
    assert all("expected" in v.message and "\n" not in v.message for v in violations)
    return {v.promise for v in violations}


# -- models ----------------------------------------------------------------------------------------------------------------


class Idle(Symbols):
    """Applies no update."""

    def apply_update(self, rank: int, iteration: int) -> None:
        return


class Stubborn(Symbols):
    """Keeps what it has, whatever others send."""

    def average(self, rank: int, total: str | None, own_weight: float, divisor: float, value: Value) -> None:
        return


class Swapped(Symbols):
    """Treats who is late as if it were fresh, and the other way round."""

    def average(self, rank: int, total: str | None, own_weight: float, divisor: float, value: Value) -> None:
        length = divisor - own_weight
        super().average(rank, total, 1 - own_weight, length + 1 - own_weight, value)


class Hoarding(Symbols):
    """Keeps all of its model, besides what it gives away."""

    def average(self, rank: int, total: str | None, own_weight: float, divisor: float, value: Value) -> None:
        super().average(rank, total, 1.0, divisor, value)


class Early(Symbols):
    """Computes with a model from before the last update."""

    def __init__(self, ranks: int) -> None:
        super().__init__(ranks)
        self.before = dict.fromkeys(range(ranks), "initial")

    def compute_gradient(self, rank: int, iteration: int) -> None:
        self._values[Value.GRADIENT][rank] = symbol("gradient", self.before[rank], rank, iteration)
        self.before[rank] = self._values[Value.MODEL][rank]


class Twice(Symbols):
    """Applies each update twice."""

    def apply_update(self, rank: int, iteration: int) -> None:
        super().apply_update(rank, iteration)
        super().apply_update(rank, iteration)


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("numerics", [Idle, Early, Twice])
def test_what_is_no_step_of_the_algorithm_is_seen(algorithm: str, numerics: type[Symbols]) -> None:
    assert broken(run(algorithm, numerics(RANKS))) == {3}


@pytest.mark.parametrize(
    ("algorithm", "numerics"),
    [
        ("wagma_sgd", Stubborn), ("eager_sgd", Stubborn), ("d_psgd", Stubborn), ("sgp", Stubborn),
        ("wagma_sgd", Swapped), ("sgp", Hoarding),
    ],
)  # fmt: skip
def test_another_average_than_the_algorithm_makes_is_seen(algorithm: str, numerics: type[Symbols]) -> None:
    assert broken(run(algorithm, numerics(RANKS))) == {3}


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("iteration", [2, ITERATIONS - 1])
def test_a_model_of_nowhere_is_seen(algorithm: str, iteration: int) -> None:
    trace = copy.deepcopy(base(algorithm))
    next(a for a in trace.iterations if (a.rank, a.iteration) == (1, iteration)).model_digest = OTHER
    # Where every iteration is a sync, others have another model then.
    assert broken(trace) == ({3, 6} if algorithm == "allreduce_sgd" else {3})


@pytest.mark.parametrize("algorithm", ["ad_psgd", "swarm_sgd"])
def test_an_average_with_a_model_of_long_ago_is_seen(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides agree on it: whoever asks sends the initial model instead of the one that it has."""
    ask = Gossip.average_pair

    def stale(self: Any, rank: int, effect: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(self._numerics, "publish", lambda rank, value: "initial")
            return ask(self, rank, effect)

    monkeypatch.setattr(Gossip, "average_pair", stale)
    trace = run(algorithm)
    assert broken(trace) == {3}
    assert all("sent initial" in v.message for v in validate(trace))


def test_weights_of_push_sum_must_add_up_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gives away and keeps a whole model: columns of P add up to n + 1."""
    monkeypatch.setattr(importlib.import_module("wagma.algorithms.sgp"), "shares", lambda receivers: (1.0, 1.0))
    assert broken(run("sgp")) == {2, 3}


def test_an_algorithm_of_ones_own_may_do_otherwise() -> None:
    """In another order, on another graph, with other weights; promises that hold for all algorithms are checked nevertheless."""

    def hops(rank: RankView) -> Algorithm:
        for t in rank.iterations:
            yield ComputeGradient(t)
            yield ApplyUpdate(t)
            outcome = yield Exchange(t, Value.MODEL, ((rank.rank + 2) % RANKS,), ((rank.rank - 2) % RANKS,), share=3)
            yield Average(t, 1, 3 + outcome.mass)
            yield ApplyUpdate(t)

    with registered("hops", hops):
        trace = run("hops")
        assert validate(trace) == []
        trace.exchanges[7].sent_digest = OTHER
        assert broken(trace) == {3}


def test_a_model_is_merged_by_the_rule_of_its_group() -> None:
    """With the length of another group the mean would not be one."""
    trace = copy.deepcopy(base("wagma_sgd"))
    a = next(a for a in trace.iterations if a.iteration == ITERATIONS - 1 and a.fresh)
    assert a.model_digest == merged(a.merged_digest, "", 0, 2)
    a.model_digest = merged(a.merged_digest, "", 0, 3)
    assert broken(trace) == {3}


# -- graphs ----------------------------------------------------------------------------------------------------------------


def test_two_rings_are_no_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.import_module("wagma.algorithms.d_psgd"), "ring", lambda ranks, rank: ((rank - 2) % ranks, (rank + 2) % ranks)
    )
    assert 2 in broken(run("d_psgd"))


def test_pairs_of_one_side_are_no_bipartition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.import_module("wagma.algorithms.ad_psgd"), "passive_partner", lambda ranks, rank, t, seed: (rank + 2) % ranks
    )
    assert broken(run("ad_psgd")) == {2}


def test_other_out_neighbours_than_the_scenario_has_are_seen() -> None:
    trace = copy.deepcopy(base("sgp"))
    trace.header.scenario["algorithms"] = {"sgp": {"out_neighbours": 2}}
    assert 2 in broken(trace)


@pytest.mark.parametrize("algorithm", ["ad_psgd", "swarm_sgd", "d_psgd", "sgp"])
def test_a_run_without_any_exchange_is_seen(algorithm: str) -> None:
    trace = copy.deepcopy(base(algorithm))
    trace.exchanges.clear()
    assert 1 in broken(trace)


def test_averages_come_with_every_local_steps() -> None:
    trace = run("swarm_sgd", algorithms={"swarm_sgd": {"local_steps": 3}})
    assert validate(trace) == []
    trace.header.scenario["algorithms"]["swarm_sgd"]["local_steps"] = 2
    assert broken(trace) >= {1, 2}


def test_the_last_averages_of_ad_psgd_may_be_missing_but_not_others() -> None:
    """Its second activity ends with the first, whichever iteration it has come to."""
    slow = {**NETWORK, "latency_ns": 5000}
    trace = run("ad_psgd", network=slow)
    asked = [x.version for x in trace.exchanges if (x.rank, x.role) == (0, "active")]
    assert max(asked) < ITERATIONS - 1
    assert validate(trace) == []
    for x in [x for x in trace.exchanges if x.version == max(asked) and 0 in (x.rank, *x.sources)]:
        trace.exchanges.remove(x)
    assert broken(trace) == {1}


# -- activators ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", COLLECTIVE)
@pytest.mark.parametrize("value", [False, True])
def test_the_flags_of_activators_are_checked(algorithm: str, value: bool) -> None:
    trace = copy.deepcopy(base(algorithm))
    for e in trace.executions:
        e.activator = value
    assert broken(trace) == {7}


def test_an_activator_activates_when_it_arrives() -> None:
    trace = copy.deepcopy(base("wagma_sgd"))
    e = next(e for e in trace.executions if e.activator and e.version == 3)
    e.activated_ns -= 1
    assert broken(trace) == {7}


# -- times -----------------------------------------------------------------------------------------------------------------

Change = Callable[[Trace], None]


def last_return_late(trace: Trace) -> None:
    trace.iterations[-1].return_ns += 10**9


def return_too_late(trace: Trace) -> None:
    """And the next iteration computes for less, so that all fits but the wait."""
    a, after = trace.iterations[3:5]
    a.return_ns += 1
    after.computed_ns -= 1


def no_compute(trace: Trace) -> None:
    for a in trace.iterations:
        a.computed_ns = 0


def no_delays(trace: Trace) -> None:
    assert any(a.delayed_ns for a in trace.iterations)
    for a in trace.iterations:
        a.delayed_ns = 0


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("change", [last_return_late, return_too_late, no_compute, no_delays])
def test_times_are_recomputed(algorithm: str, change: Change) -> None:
    if algorithm == "ideal" and change is no_delays:
        return  # it has none
    trace = copy.deepcopy(base(algorithm))
    change(trace)
    assert 7 in broken(trace)
    trace.header.clock = "monotonic"
    assert 7 not in broken(trace)


@pytest.mark.parametrize("algorithm", ["wagma_sgd", "eager_sgd", "sgp", "d_psgd"])
def test_an_iteration_does_not_end_before_its_compute(algorithm: str) -> None:
    trace = run(algorithm, network={**NETWORK, "gap_per_byte_ns": 0, "overlap": 0.9})
    assert validate(trace) == []
    a = next(a for a in trace.iterations if a.iteration == ITERATIONS - 1 and a.return_ns > a.arrival_ns)
    a.return_ns -= 1
    assert 7 in broken(trace)


# -- legal runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [8, 16])
def test_an_answer_and_a_question_in_one_nanosecond(ranks: int) -> None:
    """Who is asked and released at the same time may ask next before or after it answers."""
    own = {"algorithms.ad_psgd": {"all_ask": True, "await_averaging": True}, "imbalance": []}
    compute = {"compute": {"kind": "constant", "seconds": 0.01}}
    scenario = load("resnet50_imagenet", {"ranks": ranks, "iterations": 20, **own, **compute})
    trace = simulate(scenario, "ad_psgd", Symbols(ranks))
    assert validate(trace) == []
    asked = {(x.rank, x.started_ns) for x in trace.exchanges if x.role == "active"}
    assert asked & {(x.rank, x.started_ns) for x in trace.exchanges if x.role == "passive"}


@pytest.mark.parametrize("algorithm", ALL)
def test_ranks_that_are_held_before_they_compute(algorithm: str) -> None:
    """By whatever shares their environment: that is a delay, before which a partner may still be asked."""
    own = {"algorithms": {"ad_psgd": {"all_ask": True, "await_averaging": True}}} if algorithm == "ad_psgd" else {}
    scenario = read(scenario_table(RANKS, ITERATIONS, network=NETWORK, **own), "held")
    simulation = Run(scenario, algorithm, Symbols(RANKS), None)
    simulation.gate = lambda rank, t: simulation.env.timeout(137 * (rank + 5 * t + 1)) if (rank + t) % 3 == 0 else None
    trace = simulation.execute()
    assert max(a.delayed_ns for a in trace.iterations) > 5000
    assert validate(trace) == []


def rows(draw: st.DrawFn, ranks: int, iterations: int) -> list[list[float]]:
    times = st.sampled_from([1, 1, 2, 5, 50, 100, 500, 7000])
    return [[draw(times) * 1e-9 for _ in range(iterations)] for _ in range(ranks)]


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    algorithm, ranks = draw(st.sampled_from(ALL)), draw(st.integers(1, 9))
    pick, flag = lambda *values: draw(st.sampled_from(values)), st.booleans()
    network: dict[str, Any] = {
        "latency_ns": pick(0, 1, 7, 100), "overhead_ns": pick(0, 1, 50), "gap_ns": pick(0, 1, 300),
        "gap_per_byte_ns": pick(0, 0.5, 1), "overlap": pick(0, 0.25, 0.9), "reduce_ns_per_byte": pick(0, 0.3, 7),
        "progress_computing_ns": pick(0, 0, 500),
    }  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "sgp": {"out_neighbours": pick(1, 2, 5), "global_clock": draw(flag)},
        "d_psgd": {"global_clock": draw(flag)},
        "eager_sgd": {"initiators": pick("solo", "majority", 1, min(2, ranks))},
        "ad_psgd": {"all_ask": draw(flag), "await_averaging": draw(flag)},
        "swarm_sgd": {"local_steps": pick(1, 2, 3)},
    }
    periods = [1, 2, 3, 7] if algorithm == "local_sgd" else [1, 2, 3, 7, "never"]
    shared = {"group_size": draw(st.integers(1, ranks)), "sync_period": pick(*periods), "merge_once": draw(flag)}
    table = scenario_table(
        ranks, 7, seed=draw(st.integers(0, 2**40)), model={"parameters": pick(1, 17)}, network=network,
        compute={"kind": "trace", "seconds": rows(draw, ranks, 7)}, algorithm=shared,
        imbalance=pick([], [{"kind": "fixed", "count": 1, "delay_s": 1e-6}]),
        algorithms={algorithm: own[algorithm]} if algorithm in own else {},
    )  # fmt: skip
    return algorithm, table


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=150)
@given(tables())
def test_legal_runs_pass(case: tuple[str, dict[str, Any]]) -> None:
    algorithm, table = case
    scenario = read(table, "legal")
    assert validate(simulate(scenario, algorithm, Symbols(scenario.ranks))) == []


def test_all_algorithms_are_recomputed() -> None:
    """One that is added has to be added here, and to what wagma knows."""
    assert sorted(ALGORITHMS) == ALL
    assert {ALGORITHMS[name].collectives for name in ALL} == set(Collectives)


# -- the report ------------------------------------------------------------------------------------------------------------


def verdict(trace: Trace) -> str:
    line = next(line for line in report([trace], []).splitlines() if line.startswith("  7 "))
    return line.removeprefix("  7 progress").strip()


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ({"progress_computing_ns": 300}, "network.progress_computing_ns"),
        ({"ranks_per_node": 2, "shared_interface": True}, "network.ranks_per_node, network.shared_interface"),
        ({"ranks_per_node": 2, "node": {"latency_ns": 3}}, "network.ranks_per_node, network.node"),
    ],
)
def test_report_says_where_waits_are_not_recomputed(network: dict[str, Any], reason: str) -> None:
    trace = run("d_psgd", network={**NETWORK, **network})
    assert validate(trace) == []
    assert verdict(trace) == f"held; how long messages take not checked: {reason}"


def test_report_of_recomputed_waits_is_plain() -> None:
    assert verdict(run("d_psgd", network={**NETWORK, "overlap": 0.5, "reduce_ns_per_byte": 1})) == "held"
    real = copy.deepcopy(base("swarm_sgd"))
    real.header.clock = "monotonic"
    assert verdict(real) == "held; how long messages take not checked: times of several clocks"


def test_report_of_a_run_without_communication() -> None:
    """What such a run can show is that its models and times are those of the algorithm."""
    lines = report([base("ideal")], []).splitlines()[1:]
    assert {line[2] for line in lines if line.endswith("  held")} == {"1", "3", "7"}
    assert all(line.endswith("not checked: no collective in this run") for line in lines if line[2] in "24568")
