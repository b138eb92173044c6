"""`wagma calibrate`: finds the parameters that made the throughputs, says how well, and refuses what cannot be fitted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import wagma
from wagma.cli import main
from wagma.errors import InputError
from wagma.fitting import parse_bounds
from wagma.scenario import Scenario, load
from wagma.studies import pool
from wagma.studies.calibrate import Calibration, calibrate, in_processes, mean_beyond, mean_error
from wagma.studies.observations import Observation, read_observations
from wagma.studies.tomledit import set_values

TRUE = {"network.gap_per_byte_ns": 0.8, "network.overlap": 0.25}
FREE = {"network.gap_per_byte_ns": (0.1, 3.0), "network.overlap": (0.0, 1.0)}
POINTS = [(ranks, name) for ranks in (4, 8) for name in ("allreduce_sgd", "wagma_sgd", "eager_sgd", "ideal")]

TEXT = """\
name = "small"
ranks = 4
iterations = 25
seed = 5

[model]
parameters = 10_000_000

[work]
per_rank = 16
unit = "images"

[compute]
kind = "constant"
seconds = 0.1  # every rank

[[imbalance]]
kind = "independent"
probability = 0.2
delay_s = 0.05

[network]
latency_ns = 1_000
gap_per_byte_ns = 2.0  # to be fitted
overlap = 0.5

[algorithms.eager_sgd]
sync_period = 100

[calibration.free]
"network.gap_per_byte_ns" = [0.1, 3.0]
"network.overlap" = [0.0, 1.0]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return path


def measured(scenario: Scenario, true: dict[str, Any] = TRUE, points: list[tuple[int, str]] = POINTS) -> list[Observation]:
    """What the simulator itself says for known parameters."""
    known = scenario.replace(true)
    return [
        Observation(ranks, name, result.throughput) for ranks, name in points for result in wagma.simulate(known, [name], ranks)
    ]


def write(path: Path, rows: list[Observation], workload: str = "small", unit: str = "images/s") -> Path:
    lines = ["workload,ranks,algorithm,throughput,unit,read_error"]
    lines += [f"{workload},{row.ranks},{row.algorithm},{row.throughput},{unit},{row.read_error}" for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def values(result: Calibration) -> dict[str, float]:
    return {parameter.key: parameter.value for parameter in result.parameters}


def test_it_recovers_the_parameters_that_made_the_throughputs(small: Path) -> None:
    scenario = load(small)
    result = calibrate(scenario, measured(scenario))
    assert values(result) == pytest.approx(TRUE, rel=0.02)
    assert mean_error(result.points) < 0.002
    assert not any(parameter.at_bound for parameter in result.parameters)
    # Without either scale the other one has four points for two parameters, which are as good.
    assert [left.ranks for left in result.left_out] == [8, 4]
    for left in result.left_out:
        assert {p.key: p.value for p in left.parameters} == pytest.approx(TRUE, rel=0.05)
        assert {point.observation.ranks for point in left.points} == {left.ranks}
        assert mean_error(left.points) < 0.01


def test_it_begins_at_the_scenario_and_finds_the_same_from_elsewhere(small: Path) -> None:
    points = measured(load(small))
    other = calibrate(load(small, {"network.gap_per_byte_ns": 0.3, "network.overlap": 0.9}), points, scales=False)
    assert values(other) == pytest.approx(TRUE, rel=0.02)


def test_noisy_points_have_uncertain_parameters_and_exact_ones_do_not(small: Path) -> None:
    scenario = load(small)
    exact = measured(scenario)
    noisy = [
        Observation(point.ranks, point.algorithm, point.throughput * (1.1 if number % 2 else 0.9))
        for number, point in enumerate(exact)
    ]
    deviations = []
    for points in (exact, noisy):
        found = calibrate(scenario, points, scales=False).parameters[0].deviation
        assert found is not None
        deviations.append(found)
    assert deviations[0] < 0.01 < deviations[1]


def test_what_no_point_depends_on_is_not_determined(small: Path) -> None:
    points = [Observation(4, "ideal", 600.0), Observation(8, "ideal", 1200.0), Observation(16, "ideal", 2400.0)]
    result = calibrate(load(small), points, {"network.gap_per_byte_ns": (0.1, 3.0)}, scales=False)
    assert result.parameters[0].deviation is None


def test_errors_are_counted_beyond_the_reading_and_left_out_ones_not_at_all(small: Path) -> None:
    scenario = load(small)
    exact = measured(scenario, {}, [(4, "ideal"), (4, "allreduce_sgd"), (4, "wagma_sgd")])
    ideal, synchronous, waiting = (point.throughput for point in exact)
    points = [
        Observation(4, "ideal", ideal, 1.0),
        Observation(4, "allreduce_sgd", synchronous, 1.0),
        Observation(4, "wagma_sgd", waiting * 10, 5.0),
    ]
    result = calibrate(scenario, points, {"network.latency_ns": (500.0, 1500.0)}, ["wagma_sgd"], scales=False)
    by_name = {point.observation.algorithm: point for point in result.points}
    assert mean_error(result.points) < 1e-3
    assert mean_beyond(result.points) == 0
    assert by_name["wagma_sgd"].error == pytest.approx(-0.9, abs=1e-3)
    assert by_name["wagma_sgd"].beyond == pytest.approx(0.9 - 5 / (10 * waiting), abs=1e-3)


def test_the_command_prints_writes_and_keeps_comments(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    against = write(tmp_path / "points.csv", measured(load(small)))
    out = tmp_path / "fitted.toml"
    command = ["calibrate", str(small), "--against", str(against), "--jobs", "1", "--write", str(out), "--no-scales"]
    assert main([*command, "--json", str(tmp_path / "fit.json")]) == 0
    text = capsys.readouterr().out
    for part in ("network.gap_per_byte_ns", "±", "mean of 8 points"):
        assert part in text
    document = json.loads((tmp_path / "fit.json").read_text())
    assert len(document["points"]) == 8
    fitted = load(out)
    assert fitted.network.gap_per_byte_ns == pytest.approx(0.8, rel=0.02)
    assert fitted.network.gap_per_byte_ns == document["parameters"][0]["value"]
    assert out.read_text().count("# to be fitted") == out.read_text().count("# every rank") == 1
    assert main(["calibrate", str(out), "--against", str(against), "--jobs", "1", "--json", "-", "--no-scales"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_error"] < 0.002


def test_processes_give_the_same_as_one(small: Path) -> None:
    scenario = load(small)
    points = measured(scenario, TRUE, POINTS[:3])
    free = {"network.gap_per_byte_ns": (0.1, 3.0)}
    here = calibrate(scenario, points, free, scales=False)
    there = calibrate(scenario, points, free, scales=False, runner=in_processes(2))
    assert values(here) == values(there)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("small,4,wagma_sgd,nan", "points.csv:2: throughput = 'nan': must be a finite number, greater than 0"),
        ("small,4,wagma_sgd,-3", "points.csv:2: throughput = '-3': must be a finite number, greater than 0"),
        ("small,4,wagma_sgd,fast", "points.csv:2: throughput = 'fast': must be a finite number, greater than 0"),
        ("small,4,wagma_sgd,0", "points.csv:2: throughput = '0': must be a finite number, greater than 0"),
        ("small,4,magic_sgd,3", "points.csv:2: algorithm = 'magic_sgd': unknown; allowed: "),
        ("small,0,wagma_sgd,3", "points.csv:2: ranks = '0': must be a whole number from 1 to"),
        ("small,four,wagma_sgd,3", "points.csv:2: ranks = 'four': must be a whole number from 1 to"),
        ("small,4,wagma_sgd", "points.csv:2: 3 fields, the header has 4"),
        ("small,4,wagma_sgd,3\nsmall,4,wagma_sgd,4", "points.csv:3: wagma_sgd on 4 ranks: must not be there twice"),
        ("large,4,wagma_sgd,3", "points.csv: no row whose workload is 'small', the name of the scenario; it has large"),
        ("", "points.csv: no row whose workload is 'small', the name of the scenario; it has no rows"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(rows: str, expected: str, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(f"workload,ranks,algorithm,throughput\n{rows}\n")
    with pytest.raises(InputError) as error:
        read_observations(path, load(small))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workload,ranks,throughput\n", "points.csv:1: no column algorithm; must have workload,ranks,algorithm,throughput"),
        (
            "workload,ranks,algorithm,throughput,unit\nsmall,4,ideal,3,tokens/s\n",
            "points.csv:2: unit = 'tokens/s': must be 'images/s'",
        ),
        (
            "workload,ranks,algorithm,throughput,read_error\nsmall,4,ideal,3,-1\n",
            "points.csv:2: read_error = '-1': must be a finite number, at least 0",
        ),
        ("workload,ranks,ranks,algorithm,throughput\n", "points.csv:1: a column is there twice"),
        ("", "points.csv:1: no column workload, ranks, algorithm, throughput"),
    ],
)
def test_a_bad_file_is_refused(text: str, expected: str, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_observations(path, load(small))
    assert expected in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_observations(tmp_path / "nowhere.csv", load(small))
    (tmp_path / "latin.csv").write_bytes(b"workload,\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_observations(tmp_path / "latin.csv", load(small))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--free", "network.gap_ns"], "--free network.gap_ns: no bounds; give them as network.gap_ns=[LOW,HIGH]"),
        (["--free", "network.gap_per_byte_ns=[3,1]"], "must be [low, high], two finite numbers, the smaller one first"),
        (["--free", "network.gap_per_byte_ns=7"], "must be [low, high], two finite numbers, the smaller one first"),
        (["--free", "network.gap_per_byte_ns=[0.1,1.5]"], "the scenario's own value, 2, is not within"),
        (["--free", "network.gap_per_byte_ns=[-1,3]"], "network.gap_per_byte_ns = -1.0: must be a finite number, at least 0"),
        (["--free", "network.magic=[0,1]"], "the scenario has no such key"),
        (["--free", "work.unit=[0,1]"], "the scenario has 'images' there; must be a number"),
        (["--leave-out", "sgp"], "--leave-out sgp: "),
        (["--leave-out", "ideal,wagma_sgd"], "2 free parameters and 1 point: must be at least as many points"),
        (["--write", "/nowhere/x.toml"], "--write /nowhere/x.toml: must be a file in a folder that exists"),
        (["--write", "x.csv"], "--write x.csv: a scenario is a .toml file"),
        (["--iterations", "0"], "must be a whole number, at least 1"),
        (["--free", "work.per_rank=[1,200]", "--free", "work.per_rank=[2,200]"], "work.per_rank is there twice"),
        (["--free", "work.per_rank=[1,200]", "--iterations", "100000000000"], "GiB of memory"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(
    arguments: list[str], expected: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Observation(4, "ideal", 600.0), Observation(4, "wagma_sgd", 300.0), Observation(4, "allreduce_sgd", 200.0)]
    against = write(tmp_path / "points.csv", rows)
    assert main(["calibrate", str(small), "--against", str(against), "--jobs", "1", *arguments]) == 2
    complaint = capsys.readouterr().err.strip()
    assert expected in complaint
    assert "\n" not in complaint


def test_a_group_size_that_does_not_fit_a_point_is_refused_before_any_simulation(small: Path) -> None:
    scenario = load(small, {"algorithm.group_size": 4})
    with pytest.raises(InputError, match="group_size"):
        calibrate(scenario, [Observation(4, "ideal", 600.0), Observation(2, "wagma_sgd", 300.0)])


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("[calibration.free]\n'network.gap_ns' = [1]", "calibration.free.network.gap_ns = [1]: must be [low, high]"),
        ("[calibration]\nleave_out = ['magic']", 'leave_out = ["magic"]: must be an array of algorithms'),
        ("[calibration]\niterations = 0", "calibration.iterations = 0: must be a whole number, at least 1"),
        ("[calibration]\nfixed = 1", "calibration.fixed = 1: unknown key"),
    ],
)
def test_a_bad_calibration_section_is_refused(section: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(TEXT.partition("[calibration.free]")[0] + section)
    with pytest.raises(InputError) as error:
        load(path)
    assert expected in str(error.value)


def test_bounds_are_two_finite_numbers() -> None:
    assert parse_bounds([1, 2.5], "x") == (1.0, 2.5)
    for bad in ([1, math.inf], [math.nan, 1], [True, 2], [1, 1], "12", None):
        with pytest.raises(InputError):
            parse_bounds(bad, "x")


def test_values_are_set_in_the_text_of_a_file() -> None:
    text = 'a = 1  # one\n[t]\nx = 2\n[[list]]\ny = 3\n[[list]]\ny = 4  # second\n[free]\n"t.x" = [1, 2]'
    done = set_values(text, {"a": 1.5, "t.x": 2.5, "list.1.y": 4.5, "t.new": 9.0}, "file")
    assert (
        done
        == 'a = 1.5  # one\n[t]\nnew = 9.0\nx = 2.5\n[[list]]\ny = 3\n[[list]]\ny = 4.5  # second\n[free]\n"t.x" = [1, 2]\n'
    )
    with pytest.raises(InputError, match="no table"):
        set_values("a = 1\n", {"t.x": 1.0}, "file")
    with pytest.raises(InputError, match="cannot be set"):
        set_values("[t]\nx = [1,\n2]\n", {"t.x": 3.0}, "file")


def test_a_csv_that_is_edited_during_the_fit_is_read_once(small: Path, tmp_path: Path) -> None:
    """All simulations of a fit have the times that the file had when it began."""
    times = tmp_path / "times.csv"
    times.write_text("rank,iteration,seconds\n0,0,0.5\n")
    scenario = load(small, {"compute": {"kind": "trace", "file": str(times)}, "imbalance": [], "iterations": 4})
    seen = set()

    def editing(jobs: Sequence[pool.Job], report: pool.Report) -> Iterator[pool.Finished]:
        times.write_text("rank,iteration,seconds\n0,0,50.0\n")
        for finished in pool.run_here(jobs, report):
            assert finished.figures is not None
            seen.add(round(finished.figures["iteration_mean_s"], 6))
            yield finished

    observed = [Observation(2, "ideal", 100.0), Observation(4, "ideal", 200.0)]
    calibrate(scenario, observed, {"work.per_rank": (1.0, 500.0)}, scales=False, runner=editing)
    assert seen == {0.5}


def test_the_file_that_comes_along_is_called_paper(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(small), "--against", "paper"]) == 2
    assert capsys.readouterr().err.startswith(
        "wagma: error: paper: no row whose workload is 'small', the name of the scenario; it has "
    )
