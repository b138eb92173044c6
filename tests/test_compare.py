"""Time to accuracy: what `wagma compare` says is what the runs say, whoever runs them and in whatever order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from wagma.algorithms import ALGORITHMS
from wagma.cli import main
from wagma.errors import InputError, WagmaError
from wagma.scenario import Scenario, load

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from wagma.api import run
from wagma.commands.compare import _curve, describe
from wagma.results import summarize
from wagma.studies import compare as comparing
from wagma.studies.compare import Comparison, ablate, ablation_variants, compare

SMALL = {"ranks": 8, "iterations": 40, "training.learning_rate": 0.2}
PAIR = ["wagma_sgd", "local_sgd"]


def small(**changes: Any) -> Scenario:
    return load("digits_skewed", SMALL | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def pair() -> Comparison:
    return compare(small(), PAIR, seeds=2, every=5, target=0.6)


@pytest.fixture(scope="module")
def ablated() -> Comparison:
    return ablate(small(algorithm__sync_period=5), seeds=1, every=20)


def test_every_line_starts_from_the_same_models(pair: Comparison) -> None:
    assert [line.variant.label for line in pair.lines] == PAIR
    for number in range(2):
        starts = {line.runs[number].curve[0].score for line in pair.lines}
        assert len(starts) == 1
    assert pair.lines[0].runs[0].curve != pair.lines[0].runs[1].curve


def test_a_line_is_what_simulating_it_gives(pair: Comparison) -> None:
    for line in pair.lines:
        for seed, learned in zip(pair.seeds, line.runs, strict=True):
            alone = summarize(run(small(seed=seed), line.variant.algorithm))
            assert dataclasses.replace(learned.result, wall_s=0.0) == dataclasses.replace(alone, wall_s=0.0)
            assert learned.score == learned.curve[-1].score
            assert [point.iterations for point in learned.curve] == list(range(0, 41, 5))
            assert learned.curve[-1].time_ns <= alone.makespan_ns


def test_the_time_to_a_target_is_that_of_the_first_evaluation_above_it(pair: Comparison) -> None:
    told = 0
    for line in pair.lines:
        for learned in line.runs:
            seconds = learned.seconds_to(pair.target)
            below = [point for point in learned.curve if point.score < pair.target]
            if seconds is None:
                assert len(below) == len(learned.curve)
                continue
            told += 1
            first = next(point for point in learned.curve if point.time_ns == round(seconds * 1e9))
            assert first.score >= pair.target
            assert all(point.score < pair.target for point in learned.curve if point.time_ns < first.time_ns)
    assert told


def test_the_default_target_is_five_points_below_the_best_mean() -> None:
    found = compare(small(iterations=20), PAIR, seeds=2)
    best = max(sum(run.score for run in line.runs) / 2 for line in found.lines)
    assert best - 0.06 < found.target <= best - 0.05
    assert round(100 * found.target, 9) == int(100 * found.target + 0.5)


def test_json_has_the_same_bytes_whoever_runs_it(pair: Comparison) -> None:
    """In this process, in two others that take turns, once more: nothing but the seed decides, and no wall time is in it."""
    text = compare(small(), PAIR, seeds=2, every=5, target=0.6, processes=2).to_json()
    assert text == pair.to_json()
    assert "wall" not in text
    document = json.loads(text)
    assert (document["scenario"], document["seeds"], document["target"]) == ("digits_skewed", [1, 2], 0.6)
    line = document["lines"][0]["runs"][1]
    assert {"seed", "accuracy", "score", "seconds_to_target", "throughput", "staleness", "makespan_ns", "curve"} <= set(line)
    assert line["curve"][0].keys() == {"time_ns", "iterations", "score"}


def test_the_table_says_what_the_runs_say(pair: Comparison) -> None:
    lines = describe(pair).splitlines()
    assert "8 ranks" in lines[0]
    assert "40 iterations" in lines[0]
    row = next(line for line in lines if line.startswith("wagma_sgd"))
    accuracies = [run.score for run in pair.lines[0].runs]
    assert f"{100 * sum(accuracies) / 2:.1f} % ({100 * min(accuracies):.1f} to {100 * max(accuracies):.1f})" in row
    assert " / 9 " in row
    never = describe(dataclasses.replace(pair, target=1.0))
    assert never.count("never") == 2


def test_a_target_that_some_seeds_reach_says_how_many(pair: Comparison) -> None:
    finals = sorted(max(point.score for point in run.curve) for run in pair.lines[0].runs)
    assert finals[0] < finals[1]
    assert "(1 of 2)" in describe(dataclasses.replace(pair, target=finals[1]))


def test_all_algorithms_but_those_without_a_common_model() -> None:
    names = [variant.label for variant in comparing.algorithm_variants("all")]
    assert set(ALGORITHMS) - set(names) == {"ideal"}


def test_a_run_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a defect\nin two lines")

    monkeypatch.setattr(comparing, "learn", fail)
    with pytest.raises(WagmaError, match="digits_skewed: wagma_sgd, seed 1: RuntimeError: a defect in two lines"):
        compare(small(), PAIR)


# -- ablations ------------------------------------------------------------------------------------------------------------


def test_ablations_vary_one_thing_at_a_time() -> None:
    variants = ablation_variants(small(ranks=16, iterations=100, algorithm__sync_period=5))
    labels = [variant.label for variant in variants]
    assert labels == [
        "wagma_sgd, group_size 4, sync_period 5", "no group collectives", "fixed groups",
        "group_size 2", "group_size 4", "group_size 8", "group_size 16",
        "sync_period 1", "sync_period 2", "sync_period 4", "sync_period 5", "sync_period 8", "sync_period 16", "sync_period 32",
        "sync_period never",
    ]  # fmt: skip
    base = variants[0].changes
    for variant in variants[2:]:
        assert sum(variant.changes[key] != value for key, value in base.items()) == (
            0 if variant.label in ("group_size 4", "sync_period 5") else 1
        )


def test_without_a_sync_there_is_no_local_sgd_to_compare_with() -> None:
    labels = [variant.label for variant in ablation_variants(small(algorithm__sync_period="never"))]
    assert "no group collectives" not in labels
    assert labels.count("sync_period never") == 1


def test_ablations_run_what_they_say(ablated: Comparison) -> None:
    lines = {line.variant.label: line for line in ablated.lines}
    base = ablated.lines[0]
    assert lines["group_size 4"].runs == lines["sync_period 5"].runs == base.runs
    local = compare(small(algorithm__sync_period=5), "local_sgd", seeds=1, every=20).lines[0].runs[0]
    assert lines["no group collectives"].runs[0].curve == local.curve
    assert lines["sync_period never"].runs[0].result.staleness_bound is None
    assert lines["sync_period 16"].runs[0].result.staleness_bound == 15
    assert lines["sync_period 1"].runs[0].result.throughput < base.runs[0].result.throughput
    distinct = {line.runs[0].curve for line in ablated.lines}
    assert len(distinct) == len(ablated.lines) - 2  # base and its two places in the rows
    assert lines["fixed groups"].runs[0].curve != base.runs[0].curve


# -- the command ----------------------------------------------------------------------------------------------------------


def test_the_command_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture, written = tmp_path / "accuracy.png", tmp_path / "compare.json"
    changes = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    options = ["--algorithms", "wagma_sgd,local_sgd", "--seeds", "4,2", "--every", "5", "--jobs", "1"]
    status = main(["compare", "digits_skewed", *changes, *options, "--plot", str(picture), "--json", str(written), "-v"])
    output, errors = capsys.readouterr()
    assert (status, errors) == (0, "")
    assert "wagma_sgd" in output
    assert json.loads(written.read_text())["seeds"] == [4, 2]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


def test_a_curve_has_the_spread_of_the_seeds(pair: Comparison) -> None:
    curve = _curve(pair.lines[0])
    for k in range(9):
        both = [run.curve[k].score for run in pair.lines[0].runs]
        assert (curve.low[k], curve.high[k]) == (min(both), max(both))
        assert curve.mean[k] == pytest.approx(sum(both) / 2)
    assert curve.seconds[0] == 0


def test_ablations_print_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--ranks", "2", "--iterations", "4", "--seeds", "1", "--sync-period", "2", "--jobs", "1"]
    assert main(["compare", "digits_skewed", *options, "--ablations"]) == 0
    output = capsys.readouterr().out
    for label in ("no group collectives", "fixed groups", "group_size 2", "sync_period 1", "sync_period never"):
        assert sum(line.startswith(label) for line in output.splitlines()) == 1, label


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["resnet50_imagenet"], 'training.workload = "none"'),
        (["digits_skewed", "--algorithms", "ideal"], "ideal: its ranks never communicate"),
        (["digits_skewed", "--algorithms", "sgd"], "'sgd'"),
        (["digits_skewed", "--seeds", "0"], "'0'"),
        (["digits_skewed", "--seeds", "2,2"], "'2,2'"),
        (["digits_skewed", "--seeds=-1,2"], "'-1,2'"),
        (["digits_skewed", "--seeds", "many"], "'many'"),
        (["digits_skewed", "--every", "0"], "every = 0"),
        (["digits_skewed", "--every", "1001"], "every = 1001: must be from 1 to the number of iterations, 1000"),
        (["digits_skewed", "--target", "0"], "target = 0"),
        (["digits_skewed", "--target", "90"], "target = 90: must be above 0 and at most 1"),
        (["digits_skewed", "--target", "nan"], "target = nan"),
        (["digits_skewed", "--jobs", "0"], "--jobs 0"),
        (["digits_skewed", "--algorithms", ""], "algorithm = ''"),
        (["digits_skewed", "--ablations", "--algorithms", ""], "--ablations"),
        (["digits_skewed", "--iterations", "1000000000"], "GiB"),
        (["digits_skewed", "--ranks", "0"], "ranks = 0"),
        (["digits_skewed", "--ranks", "2000"], "ranks = 2000"),
        (["digits_skewed", "--ablations", "--algorithms", "wagma_sgd"], "--ablations"),
        (["digits_skewed", "--ablations", "--plot", "a.png"], "--ablations"),
        (["digits_skewed", "--plot", "a.gif"], "a.gif"),
        (["digits_skewed", "--plot", "nowhere/a.png"], "nowhere"),
        (["digits_skewed", "--sync-period", "never"], "local_sgd"),
        (["digits_skewed", "--set", "training.shards=sorted"], "must be one of iid, by_label, dirichlet"),
        (["digits_skewed", "--set", "training.concentration=0"], "training.concentration = 0"),
        (["digits_skewed", "--set", "training.concentration=inf"], "training.concentration = inf"),
        (["digits_skewed", "--set", "training.numerics=fast"], "must be one of per_rank, batched"),
        (["digits_skewed", "--set", "algorithm.groups=random"], "must be one of changing, fixed"),
        (["digits_skewed", "--set", "algorithms.wagma_sgd.groups=1"], "must be one of changing, fixed"),
    ],
)
def test_bad_input_is_answered_with_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("wagma: error: ")
    assert errors.count("\n") == 1
    assert named in errors


@pytest.mark.parametrize("seeds", [0, [], [1, 1]])
def test_bad_seeds_from_python(seeds: Any) -> None:
    with pytest.raises(InputError, match="seeds"):
        compare(small(), PAIR, seeds=seeds)


def test_real_ranks_refuse_fixed_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "-n", "2", "--algorithm", "wagma_sgd", "--set", "algorithm.groups=fixed"]) == 2
    assert 'groups = "fixed": simulator only' in capsys.readouterr().err
