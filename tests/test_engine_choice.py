"""Which engine runs what, what it refuses, and one's own algorithms on both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from engines import COVERED, NOT_COVERED, assert_agree, table

import wagma
from wagma.algorithms import ALGORITHMS, Collectives, register
from wagma.api import choose_engine, figures
from wagma.core.averaging import merge_rule
from wagma.core.effects import (
    Algorithm,
    Allreduce,
    ApplyUpdate,
    Average,
    Barrier,
    ComputeGradient,
    Exchange,
    GroupAllreduce,
    RankView,
    Value,
)
from wagma.core.graphs import ring
from wagma.errors import InputError
from wagma.scenario import read
from wagma.sim import capacity
from wagma.sim.fast.applications import Applications


@pytest.mark.parametrize("algorithm", NOT_COVERED)
def test_pairs_are_refused_in_one_line(algorithm: str) -> None:
    scenario = read(table(4), "pairs")
    assert choose_engine(scenario, algorithm) == "simpy"
    with pytest.raises(InputError) as refused:
        figures(scenario, algorithm, "fast")
    expected = f'pairs: {algorithm}: nothing for engine = "fast": it averages in pairs, which nothing keeps in step; allowed: simpy, auto'
    assert str(refused.value) == expected
    assert figures(scenario, algorithm).engine == "simpy"


def test_every_algorithm_is_either_covered_or_refused() -> None:
    assert set(COVERED) | set(NOT_COVERED) == set(ALGORITHMS)
    scenario = read(table(4), "all")
    assert {name for name in ALGORITHMS if choose_engine(scenario, name) == "fast"} == set(COVERED)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"network": {"progress_waiting_ns": 5}}, "network.progress_waiting_ns is none of its timing model"),
        ({"network": {"ranks_per_node": 2}}, "network.ranks_per_node is none of its timing model"),
        ({"training": {"workload": "digits"}}, 'its ranks train (training.workload = "digits")'),
    ],
)
def test_what_it_does_not_model_goes_to_simpy(changes: dict[str, Any], why: str) -> None:
    scenario = read(table(4, **changes), "other")
    assert choose_engine(scenario, "wagma_sgd") == "simpy"
    with pytest.raises(InputError) as refused:
        choose_engine(scenario, "wagma_sgd", "fast")
    assert why in str(refused.value)


def test_a_rank_that_computes_for_no_time_goes_to_simpy() -> None:
    scenario = read(table(4, compute={"kind": "constant", "seconds": 1e-10}), "instant")
    with pytest.raises(InputError, match="computes for less than a nanosecond"):
        figures(scenario, "wagma_sgd", "fast")
    assert figures(scenario, "wagma_sgd").engine == "simpy"
    assert figures(scenario, "ideal").engine == "fast"


def test_times_beyond_63_bits_go_to_simpy() -> None:
    scenario = read(table(2, 8, compute={"kind": "constant", "seconds": 1e9}), "ages")
    with pytest.raises(InputError, match="times may exceed"):
        figures(scenario, "allreduce_sgd", "fast")
    assert figures(scenario, "allreduce_sgd").makespan_ns > 8 * 10**18


@pytest.mark.parametrize("per_byte_ns", [2.5e7, 2.5e5])
def test_many_messages_in_a_row_may_take_times_beyond_63_bits(per_byte_ns: float) -> None:
    """255 messages of an exchange leave one after the other: four times 255 1e16 ns are too many, of 1e14 ns they are not."""
    own = {"sgp": {"out_neighbours": 255}}
    scenario = read(
        table(256, 4, model={"parameters": 10**8}, network={"gap_per_byte_ns": per_byte_ns}, algorithms=own), "rows"
    )
    if per_byte_ns > 1e6:
        with pytest.raises(InputError, match="times may exceed"):
            figures(scenario, "sgp", "fast")
    else:
        assert figures(scenario, "sgp", "fast").makespan_ns > 3.9 * 255 * 1e14


def test_unknown_engines_and_traces_of_the_fast_one_are_refused() -> None:
    scenario = read(table(4), "four")
    with pytest.raises(InputError, match="engine = 'quick': unknown; allowed: auto, simpy, fast"):
        wagma.simulate(scenario, "ideal", engine="quick")
    with pytest.raises(InputError, match="it keeps no trace"):
        wagma.simulate(scenario, "ideal", traces=True, engine="fast")
    assert [trace.header.engine for trace in wagma.simulate(scenario, "ideal", traces=True)] == ["simpy"]


# -- one's own algorithms -----------------------------------------------------------------------------------------------------------


@contextmanager
def registered(collectives: Collectives, run: Any, **options: Any) -> Iterator[str]:
    register("mine", collectives, **options)(run)
    try:
        yield "mine"
    finally:
        del ALGORITHMS["mine"]


def lazy_groups(rank: RankView) -> Algorithm:
    for t in rank.iterations:
        yield ComputeGradient(t)
        outcome = yield GroupAllreduce(t, Value.MODEL)
        own_weight, divisor = merge_rule(outcome.fresh, outcome.group_length)
        yield Average(t, own_weight, divisor)
        yield ApplyUpdate(t)


def everything_between_neighbours(rank: RankView) -> Algorithm:
    """An irregular graph: even ranks and the ranks after them swap, in reverse order of sending every other time; then all sync."""
    size = rank.schedule.world_size
    to = (rank.rank + 1 - 2 * (rank.rank % 2)) % size
    far = (rank.rank + size // 2) % size
    for t in rank.iterations:
        yield ComputeGradient(t)
        peers = (to, far) if t % 2 else (far, to)
        yield Exchange(t, Value.MODEL, to=peers, sources=peers, mass=1.0)
        yield Barrier(t)
        yield Allreduce(t, Value.MODEL)


def looks_at_its_outcome(rank: RankView) -> Algorithm:
    for t in rank.iterations:
        yield ComputeGradient(t)
        outcome = yield GroupAllreduce(t, Value.MODEL)
        if outcome.fresh:
            yield Average(t, 0, outcome.group_length)
        else:
            yield Average(t, 1, 1 + outcome.group_length)


def asks_who_it_is(rank: RankView) -> Algorithm:
    for t in rank.iterations:
        yield ComputeGradient(t)
        if rank.rank == 0:
            yield ApplyUpdate(t)


def skips_its_last_version(rank: RankView) -> Algorithm:
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if t < 3:
            outcome = yield GroupAllreduce(t, Value.MODEL)
            yield Average(t, *merge_rule(outcome.fresh, outcome.group_length))


def exchanges_twice(rank: RankView) -> Algorithm:
    neighbours = ring(rank.schedule.world_size, rank.rank)
    for t in rank.iterations:
        yield ComputeGradient(t)
        for _ in range(2):
            outcome = yield Exchange(t, Value.MODEL, to=neighbours, sources=neighbours)
            yield Average(t, 1, 1 + outcome.mass)


def names_one_rank(rank: RankView) -> Algorithm:
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield Exchange(t, Value.MODEL, to=(0,), sources=(0,))


def yields_nothing(rank: RankView) -> Algorithm:
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield None  # type: ignore[misc]


def test_an_iteration_that_is_not_joined_is_not_lost() -> None:
    """The last one: the fast engine's figures would have one iteration less."""
    scenario = read(table(4, 4, algorithm={"group_size": 2, "sync_period": "never"}), "last")
    with registered(Collectives.GROUPED, skips_its_last_version) as name:
        with pytest.raises(InputError, match="it does not join its last version, that of iteration 3"):
            figures(scenario, name, "fast")
        result = figures(scenario, name)
    assert result.engine == "simpy"
    assert result.makespan_ns >= 4 * 100


@pytest.mark.parametrize("engine", ["auto", "fast", "simpy"])
def test_a_second_exchange_in_an_iteration_is_refused_by_both(engine: str) -> None:
    with registered(Collectives.NEIGHBOURS, exchanges_twice) as name, pytest.raises(InputError) as refused:
        figures(read(table(4), "twice"), name, engine)
    assert str(refused.value) == "algorithm mine: a second Exchange in iteration 0; allowed: one in an iteration, in order"


@pytest.mark.parametrize(
    ("run", "why"), [(names_one_rank, "no arrays over all ranks"), (yields_nothing, "it yields NoneType in iteration 0")]
)
def test_what_an_array_cannot_drive_goes_to_simpy_whatever_it_yields(run: Any, why: str) -> None:
    with registered(Collectives.NEIGHBOURS, run) as name, pytest.raises(InputError, match=why):
        figures(read(table(4), "odd"), name, "fast")


@pytest.mark.parametrize("error", [TypeError, ValueError, AttributeError])
def test_a_defect_of_the_engine_is_not_taken_for_one_of_the_algorithm(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error("a defect")

    monkeypatch.setattr(Applications, "compute", broken)
    with pytest.raises(error, match="a defect"):
        figures(read(table(4), "broken"), "wagma_sgd")


def test_ones_own_algorithm_runs_on_both() -> None:
    with registered(Collectives.GROUPED, lazy_groups) as name:
        run = assert_agree(read(table(11, 20, imbalance=[{"kind": "exactly", "count": 2, "delay_s": 3e-6}]), "own"), name)
        assert set(np.unique(run.fresh)) == {0, 1}
    with registered(Collectives.EVERY, everything_between_neighbours) as name:
        assert_agree(read(table(6), "own"), name)


@pytest.mark.parametrize("run", [looks_at_its_outcome, asks_who_it_is])
def test_an_algorithm_that_an_array_cannot_drive_goes_to_simpy(run: Any) -> None:
    collectives = Collectives.GROUPED if run is looks_at_its_outcome else Collectives.NONE
    with registered(collectives, run) as name:
        scenario = read(table(4), "branching")
        with pytest.raises(InputError, match="it cannot be driven with an array of ranks"):
            figures(scenario, name, "fast")
        assert figures(scenario, name).engine == "simpy"


# -- memory, and the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["simpy", "fast"])
def test_a_scale_that_does_not_fit_is_refused_before_it_starts(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "available_bytes", lambda: 3 << 30)
    with pytest.raises(InputError) as refused:
        wagma.simulate(read(table(2**20, 1000), "vast"), "wagma_sgd", engine=engine)
    assert str(refused.value).startswith("vast: wagma_sgd with 1048576 ranks and 1000 iterations needs about ")
    assert f" GiB of memory on the {engine} engine, 3.0 GiB are available; " in str(refused.value)
    wagma.simulate(read(table(16), "small"), "wagma_sgd", engine=engine)


def test_available_memory_is_plausible() -> None:
    available = capacity.available_bytes()
    assert available is not None
    assert 1 << 20 < available < 1 << 50


def test_the_command_line_chooses(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from wagma.cli import main

    command = [
        "simulate",
        "resnet50_imagenet",
        "-n",
        "4",
        "--iterations",
        "3",
        "--algorithms",
        "wagma_sgd,swarm_sgd",
        "--json",
        "-",
    ]
    engines = {}
    for engine in ("auto", "simpy"):
        assert main([*command, "--engine", engine]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        engines[engine] = [(result["algorithm"], result["engine"]) for result in results]
    assert engines == {
        "auto": [("wagma_sgd", "fast"), ("swarm_sgd", "simpy")], "simpy": [("wagma_sgd", "simpy"), ("swarm_sgd", "simpy")],
    }  # fmt: skip
    assert main([*command, "--engine", "fast"]) == 2
    assert "averages in pairs" in capsys.readouterr().err
    assert main([*command, "--engine", "fast", "--trace", str(tmp_path / "t.jsonl")]) == 2
    assert "it keeps no trace" in capsys.readouterr().err
