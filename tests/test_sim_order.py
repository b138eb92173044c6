"""What makes the SimPy engine fast must not change the order of anything."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import simpy

from wagma.core.protocol import Machine, Output
from wagma.scenario import read
from wagma.sim.driver import simulate
from wagma.sim.memory import SELDOM, seldom_collecting
from wagma.sim.network import LogGP
from wagma.sim.numerics import Nothing
from wagma.timing.network import Network


def network(ranks: int = 2) -> tuple[simpy.Environment, LogGP]:
    env = simpy.Environment(0)
    return env, LogGP(env, ranks, Network(latency_ns=10, overhead_ns=1, gap_ns=5, gap_per_byte_ns=1, activation_ns=7))


def test_calls_of_one_time_are_made_in_the_order_in_which_they_were_asked_for() -> None:
    env, net = network()
    made: list[Any] = []
    net.call(12, made.append, "first")
    net.send(0, 1, 1, made.append, "second")  # 10 + 2 ns
    net.call(5, lambda: net.activate(0, [(made.append, ("third",)), (made.append, ("fourth",))]))
    net.call(12, lambda: net.call(0, made.append, "last"))
    net.call(3, made.append, "early")
    env.run()
    assert made == ["early", "first", "second", "third", "fourth", "last"]
    assert env.now == 12
    assert net.messages == 3


def test_ranks_go_on_before_the_next_call_of_the_same_time() -> None:
    """One event for all calls of a time, and yet whatever a call releases comes before the next call, as if each had its own."""
    env, net = network()
    made: list[Any] = []
    released = env.event()

    def rank() -> Any:
        yield released
        made.append(("rank", env.now))
        net.call(0, made.append, "asked by the rank")
        yield env.timeout(0)
        made.append("rank again")

    env.process(rank())
    net.call(4, released.succeed)
    net.call(4, made.append, "call")
    env.run()
    assert made == [("rank", 4), "rank again", "call", "asked by the rank"]


def test_application_events_precede_calls_of_the_same_time() -> None:
    env, net = network()
    made: list[Any] = []
    net.call(9, made.append, "call")

    def rank() -> Any:
        yield env.timeout(9)
        made.append("rank")

    env.process(rank())
    env.run()
    assert made == ["rank", "call"]


@pytest.mark.parametrize("ranks", [2, 5, 7, 8, 13])
@pytest.mark.parametrize("name", ["wagma_sgd", "eager_sgd", "allreduce_sgd"])
def test_an_activation_that_is_known_changes_nothing(ranks: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Machine.knows spares would have had no effect; and it spares something."""
    knows, asked = Machine.knows, {True: 0, False: 0}

    def checked(machine: Machine, version: int, dimension: int) -> bool:
        known = knows(machine, version, dimension)
        asked[known] += 1
        before = machine.state
        outputs: list[Output] = machine.activation(version, dimension)
        changed = bool(outputs) or machine.state != before
        machine.restore(before)
        assert known != changed
        return known

    monkeypatch.setattr(Machine, "knows", checked)
    table = {
        "name": "known",
        "ranks": ranks,
        "iterations": 30,
        "seed": 4,
        "model": {"parameters": 100},
        "work": {"per_rank": 1, "unit": "steps"},
        "compute": {"kind": "scipy", "distribution": "expon", "scale": 3e-6, "loc": 1e-6},
        "network": {"latency_ns": 900, "overhead_ns": 50, "gap_ns": 100, "gap_per_byte_ns": 1},
        "algorithm": {"sync_period": 5},
        "algorithms": {"eager_sgd": {"initiators": 1}},
    }
    simulate(read(table, "test"), name, Nothing())
    assert asked[True] > 0
    assert asked[False] > 0


def test_garbage_is_collected_less_often_within_and_as_before_after() -> None:
    before = gc.get_threshold()

    def fails() -> None:
        with seldom_collecting():
            assert gc.get_threshold() == SELDOM
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert gc.get_threshold() == before
