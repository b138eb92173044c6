"""Tables and timelines, from traces whose every number is known."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from wagma.api import simulate
from wagma.errors import InputError, MissingDependencyError
from wagma.report.paper import published
from wagma.report.tables import results_table
from wagma.report.timeline import Activity, draw, rows
from wagma.results import Result, summarize
from wagma.scenario import Scenario, load, read
from wagma.text import bounded, number, percent, seconds, table
from wagma.trace import Execution, Header, Iteration, RankStart, Trace

PNG = b"\x89PNG\r\n\x1a\n"


def scenario(ranks: int = 2, iterations: int = 4) -> Scenario:
    table = {
        "name": "two", "ranks": ranks, "iterations": iterations, "seed": 1, "model": {"parameters": 10},
        "work": {"per_rank": 8, "unit": "images"}, "compute": {"kind": "constant", "seconds": 1.0},
        "algorithm": {"group_size": ranks, "sync_period": 2},
    }  # fmt: skip
    return read(table, "two")


def late_trace() -> Trace:
    """Rank 1 is delayed from 100 to 250 and executed passively at 110 to 120; then both meet in a sync at 400 to 410.

    Rank 0 arrives at 110 and 220, rank 1 at 250 and 400.
    """
    header = Header("sim", "simpy", "wagma_sgd", "model", "virtual", "off", dict(scenario(iterations=2).table))
    starts = [RankStart(0, 0), RankStart(1, 0)]
    both = [0, 1]
    executions = [
        Execution(0, 0, 0, both, True, 110, 110, 120, 0),
        Execution(0, 2, 1, both, True, 220, 220, 410, 1),
        Execution(1, 0, 0, both, False, 110, 110, 120, -1),
        Execution(1, 2, 1, both, True, 400, 400, 410, 1),
    ]
    iterations = [
        Iteration(0, 1, 0, 110, 120, True, 0, computed_ns=110),
        Iteration(0, 3, 1, 220, 410, True, 1, computed_ns=100),
        Iteration(1, 1, 0, 250, 250, False, 0, computed_ns=100, delayed_ns=150),
        Iteration(1, 3, 1, 400, 410, True, 1, computed_ns=150),
    ]
    return Trace(header, starts, executions, iterations, "late")


def test_rows_say_who_did_what() -> None:
    zero, one = (rows(late_trace())[rank] for rank in (0, 1))
    assert zero.spans[Activity.COMPUTING] == [(0, 110), (120, 220)]
    assert zero.spans[Activity.DELAY] == []
    assert zero.spans[Activity.WAITING] == [(110, 120), (220, 410)]
    # At the sync it waits for rank 1, which starts at 400; only then do they communicate.
    assert zero.spans[Activity.COMMUNICATING] == [(110, 120), (400, 410)]
    assert zero.spans[Activity.PASSIVE] == []
    assert one.spans[Activity.COMPUTING] == [(0, 100), (250, 400)]
    assert one.spans[Activity.DELAY] == [(100, 250)]
    assert one.spans[Activity.WAITING] == [(400, 410)]
    assert one.spans[Activity.PASSIVE] == [(110, 120)]
    assert one.spans[Activity.COMMUNICATING] == [(400, 410)]
    assert (zero.late, one.late) == ([], [250])
    assert (zero.syncs, one.syncs) == ([410], [410])


def test_an_execution_that_outlasts_the_arrival_is_passive_until_then() -> None:
    trace = late_trace()
    for execution in trace.executions:
        if execution.version == 0:
            execution.completed_ns = 260
    trace.iterations[0].return_ns = trace.iterations[2].return_ns = 260
    one = rows(trace)[1]
    assert one.spans[Activity.PASSIVE] == [(110, 250)]
    assert one.spans[Activity.COMMUNICATING] == [(250, 260), (400, 410)]


def test_clocks_of_different_hosts_are_not_compared() -> None:
    trace = late_trace()
    trace.starts[1].host = "elsewhere"
    assert rows(trace)[0].spans[Activity.COMMUNICATING] == [(110, 120), (220, 410)]


def test_activities_fill_a_simulated_rank_without_gaps() -> None:
    """Computing, delay and waiting cover each rank's time exactly, from its start to its last return."""
    [trace] = simulate(load("resnet50_imagenet", {"ranks": 8, "iterations": 12}), "wagma_sgd", traces=True)
    found = rows(trace)
    assert sum(len(row.late) for row in found.values()) > 0
    for rank, row in found.items():
        spans = sorted(s for a in (Activity.COMPUTING, Activity.DELAY, Activity.WAITING) for s in row.spans[a])
        assert spans[0][0] == trace.starts[rank].started_ns
        assert all(before[1] == after[0] for before, after in pairwise(spans))
        assert spans[-1][1] == max(a.return_ns for a in trace.iterations if a.rank == rank)
        assert len(row.syncs) == 1


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_timeline_is_a_picture(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"timeline.{suffix}"
    draw([late_trace(), late_trace()], path, count=2)
    start = {"png": PNG, "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("ranks", [1, 40])
def test_timelines_of_one_and_of_many_ranks(ranks: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    traces = simulate(scenario(ranks), ["allreduce_sgd", "ideal", "wagma_sgd"], traces=True)
    draw(traces, tmp_path / "t.png", first=1, count=3)
    assert (tmp_path / "t.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("first", "count", "name", "named"),
    [
        (0, 3, "t.png", "its last is 1"),
        (2, 1, "t.png", "2 to 2"),
        (0, 0, "t.png", "one iteration"),
        (0, 1, "t.doc", "doc"),
        (0, 1, "no/t.png", "no/t.png"),
    ],
)
def test_timelines_that_cannot_be(first: int, count: int, name: str, named: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match=named):
        draw([late_trace()], tmp_path / name, first, count)


def test_a_timeline_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        draw([late_trace()], tmp_path / "t.png")


def test_the_paper_beside_its_scenario() -> None:
    base = load("resnet50_imagenet")
    paper = published(base)
    assert (paper.points[64, "wagma_sgd"].throughput, paper.points[64, "wagma_sgd"].read_error) == (11430.0, 91.0)
    assert {ranks for ranks, _ in paper.points} == {4, 16, 64}
    assert {algorithm for ranks, algorithm in paper.points if ranks == 64} == {
        "local_sgd", "allreduce_sgd", "d_psgd", "ad_psgd", "sgp", "eager_sgd", "wagma_sgd", "ideal",
    }  # fmt: skip
    assert "figure 4" in paper.citation
    assert published(base.replace({"ranks": 16, "iterations": 9, "seed": 3})) == paper


@pytest.mark.parametrize("change", [{"imbalance.0.delay_s": 0.1}, {"algorithm.group_size": 2}, {"name": "mine"}])
def test_another_experiment_is_not_held_against_the_paper(change: dict[str, object]) -> None:
    assert published(load("resnet50_imagenet").replace(change)).points == {}


def result(algorithm: str, throughput: float, accuracy: float | None = None) -> Result:
    return Result(
        algorithm=algorithm, ranks=64, engine="simpy", iterations=10, throughput=throughput, unit="images",
        iteration_mean_s=0.7, iteration_p50_s=0.62, iteration_p99_s=0.0123, makespan_ns=7_000_000_000, staleness_max=2,
        staleness_mean=0.5, staleness_bound=None, fresh_fraction=0.75, score=accuracy,
        score_name=None if accuracy is None else "accuracy", score_direction="up", own_score=accuracy,
        ideal_throughput=13_212.9, wall_s=1.0,
    )  # fmt: skip


def test_results_beside_the_paper() -> None:
    points = published(load("resnet50_imagenet")).points
    lines = results_table([result("allreduce_sgd", 9_062.0), result("wagma_sgd", 11_658.6)], points, verbose=True).splitlines()
    assert len(lines) == 3
    assert lines[0].split("  ")[0] == "algorithm"
    assert "accuracy" not in lines[0]  # nobody has one
    for cell in (
        "wagma_sgd",
        "11,659",
        "1.29",
        "88.2 %",
        "11,430 ± 91",
        "+2.0 %",
        "0.700 s",
        "12.3 ms",
        "7.000 s",
        "2 / unbounded",
        "75.0 %",
    ):
        assert f" {cell}" in f" {lines[2]}", cell
    assert len({line.rstrip().rfind("%") for line in lines[1:]}) == 1  # aligned


def test_results_without_paper_or_reference() -> None:
    text = results_table([result("wagma_sgd", 50.0, accuracy=0.953)])
    assert "paper" not in text
    assert "x sync" not in text
    assert "95.3 %" in text
    assert results_table([]) == ""


def test_a_simulated_trace_fills_the_table() -> None:
    [trace] = simulate(scenario(), "ideal", traces=True)
    text = results_table([summarize(trace)])
    assert "100.0 %" in text  # of ideal
    assert "staleness" not in text


def test_tables() -> None:
    assert table(["name", "n", "none"], [["a", "5", ""], ["bcdef", "10 ± 2", ""]]).splitlines() == [
        "name        n",
        "a           5",
        "bcdef  10 ± 2",
    ]
    assert table(["x"], []) == ""


def test_numbers() -> None:
    assert [bounded(2, 1998), bounded(3, 9), bounded(12, None)] == ["2 / 1,998", "3 / 9", "12 / unbounded"]
    assert [number(x) for x in (12_345.6, 99.96, 0.5)] == ["12,346", "100", "0.5"]
    assert [seconds(x) for x in (0.0005, 0.0999, 0.1, 9.9, 12.34)] == ["0.5 ms", "99.9 ms", "0.100 s", "9.900 s", "12.3 s"]
    assert [percent(x) for x in (None, 0.0, 1.0)] == ["", "0.0 %", "100.0 %"]
