"""Comparisons of real runs: the bound on gains, and what `wagma compare --real` makes of traces."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import processes
import pytest

from wagma.errors import InputError
from wagma.scenario import load
from wagma.scores import ACCURACY, BITS_PER_BYTE, EPISODE_RETURN, score_named
from wagma.studies.bound import gain_bound, measured_bound
from wagma.studies.measured import compare_traces, gain, gain_to_target
from wagma.timing.measured import read_csv
from wagma.trace import Evaluation, Header, Iteration, RankStart, Trace


def test_the_bound_where_each_rank_has_a_core() -> None:
    """One of two ranks computes three times as long, in turns: waiting costs 3 + 3 of 4 each."""
    assert gain_bound(np.array([[1.0, 3.0], [3.0, 1.0]]), 2) == pytest.approx(6 / 4)


def test_nothing_is_gained_where_one_rank_is_always_last() -> None:
    assert gain_bound(np.array([[1.0, 3.0], [1.0, 3.0]]), 2) == 1


def test_nothing_is_gained_where_ranks_share_one_core() -> None:
    assert gain_bound(np.array([[1.0, 3.0], [3.0, 1.0]]), 1) == 1


def test_four_ranks_on_two_cores() -> None:
    """Waiting ranks lend their cores: max(sum / cores, max) / (sum / cores)."""
    assert gain_bound(np.array([[8.0, 1.0, 1.0, 2.0], [1.0, 8.0, 2.0, 1.0]]), 2) == pytest.approx(16 / 12)


@pytest.mark.parametrize(
    ("score", "better", "worse", "best", "near"),
    [(ACCURACY, 0.9, 0.8, 0.973, 0.92), (BITS_PER_BYTE, 3.1, 3.2, 3.178, 3.23), (EPISODE_RETURN, 200.0, -3.0, 207.46, 187.0)],
)
def test_scores_know_their_direction(score, better: float, worse: float, best: float, near: float) -> None:
    assert score.better(better, worse)
    assert not score.better(worse, better)
    assert score.reaches(better, better)
    assert not score.reaches(worse, better)
    assert (score.best([worse, better]), score.worst([worse, better])) == (better, worse)
    assert score.near(best) == pytest.approx(near)
    assert not score.better(score.near(best), best)


def test_only_what_is_held_out_is_said_to_be() -> None:
    """Nobody trains on a test set; of episodes there are as many as one likes, and of an unknown score nothing is known."""
    assert ACCURACY.basis == BITS_PER_BYTE.basis == "of the mean of all models, held-out data"
    unknown = score_named("BLEU")
    assert unknown is not None
    assert EPISODE_RETURN.basis == unknown.basis == "of the mean of all models"


SECOND = 1_000_000_000
SCENARIO = load("text", {"ranks": 2, "iterations": 2, "algorithms": {}})


def made(algorithm: str, seconds: list[list[float]], scores: list[float]) -> Trace:
    """A trace whose ranks compute so long, rows being iterations, and wait in each iteration for the other one."""
    header = Header("real", "real", algorithm, "model", "monotonic", "off", dict(SCENARIO.table))
    header.judged_by(BITS_PER_BYTE)
    header.score = header.own_score = scores[-1]
    trace = Trace(header, [RankStart(0, 5 * SECOND), RankStart(1, 5 * SECOND)])
    now = 5.0
    for t, both in enumerate(seconds):
        now += max(both)
        for rank, own in enumerate(both):
            ns = int(own * SECOND)
            trace.iterations.append(Iteration(rank, t, t, ns, int(now * SECOND), None, None, computed_ns=ns, work=10.0))
    trace.evaluations = [Evaluation(done, score) for done, score in enumerate(scores)]
    trace.sort()
    return trace


def test_times_to_a_target_and_gains() -> None:
    slow, fast = [[1.0, 3.0], [3.0, 1.0]], [[1.0, 1.0], [1.0, 2.0]]
    traces = {
        ("allreduce_sgd", 1): made("allreduce_sgd", slow, [8.0, 4.0, 3.0]),
        ("allreduce_sgd", 2): made("allreduce_sgd", slow, [8.0, 4.0, 3.2]),
        ("wagma_sgd", 1): made("wagma_sgd", fast, [8.0, 3.1, 2.9]),
        ("wagma_sgd", 2): made("wagma_sgd", fast, [8.0, 3.3, 3.2]),
    }
    found = compare_traces(SCENARIO, traces, 1)
    assert found.target == 3.2  # the worst end of synchronous training
    synchronous, wagma = found.lines
    assert synchronous.reached(found.target) == [6.0, 6.0]
    assert wagma.reached(found.target) == [1.0, 3.0]
    assert gain_to_target(wagma, synchronous, found.target) == 3.0
    assert gain(wagma, synchronous) == 2.0
    assert found.bound is not None
    assert (found.bound.gain, found.bound.cores) == (pytest.approx(1.5), 2)
    assert gain_to_target(wagma, synchronous, 2.95) is None  # not all runs get there
    document = json.loads(found.to_json())
    assert document["score"] == {"name": "bits per byte", "direction": "down"}
    assert document["lines"][1]["runs"][0]["seconds_to_target"] == 1.0


def test_a_trace_without_scores_is_refused() -> None:
    trace = made("wagma_sgd", [[1.0, 1.0], [1.0, 1.0]], [8.0, 4.0, 3.0])
    trace.evaluations = []
    with pytest.raises(InputError, match="no scores on the way; wagma train --every N gives them"):
        compare_traces(SCENARIO, {("wagma_sgd", 1): trace}, 1)


def test_ranks_that_sleep_have_cores_of_their_own() -> None:
    trace = made("wagma_sgd", [[1.0, 3.0], [3.0, 1.0]], [8.0, 4.0, 3.0])
    assert measured_bound(SCENARIO.replace({"training.stretch": 2.0}), [trace], cores=1).cores == 2
    assert measured_bound(SCENARIO.replace({"training.stretch": 1.0}), [trace], cores=1).cores == 1


@pytest.mark.mpi
def test_the_command_trains_and_compares(tmp_path: Path) -> None:
    """One job for each seed; and the times that it measured are what the simulator reads."""
    quick = [
        "--iterations",
        "6",
        "--sync-period",
        "3",
        "--group-size",
        "2",
        "--set",
        "training.stretch=1",
        "--set",
        "training.iterations={}",
    ]
    table, rows = tmp_path / "t.json", tmp_path / "t.csv"
    command = [sys.executable, "-m", "wagma", "compare", "text", "-n", "2", "--real", "--seeds", "1", "--markdown"]
    output = processes.run(
        [*command, "--algorithms", "allreduce_sgd,wagma_sgd", *quick, "--json", str(table), "--csv", str(rows)], tmp_path
    )
    found = json.loads(table.read_text())
    assert [line["label"] for line in found["lines"]] == ["allreduce_sgd", "wagma_sgd"]
    assert found["world"] == "real"
    assert 1 <= found["bound"]["gain"] <= 2
    for line in found["lines"]:
        scores = [point["score"] for point in line["runs"][0]["curve"]]
        assert len(scores) == 7
        assert scores[0] == found["lines"][0]["runs"][0]["curve"][0]["score"]
        assert scores[-1] < scores[0] - 0.5
    assert {row["algorithm"] for row in csv.DictReader(rows.read_text().splitlines())} == {"allreduce_sgd", "wagma_sgd"}
    assert "| what | bits per byte |" in output
    times = tmp_path / "times.csv"
    command = [sys.executable, "-m", "wagma", "train", "text", "-n", "2", *quick, "--times", str(times), "-q"]
    processes.run(command, tmp_path)
    assert read_csv(times, 1e9).shape == (2, 6)
    again = load("text", {"ranks": 2, "algorithms": {}, "compute": {"kind": "trace", "seconds": read_csv(times, 1e9).tolist()}})
    assert again.compute.measured is not None
