"""Compute times: distributed as the scenario says, the same for every number of ranks, read from a file as they stand there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wagma.draws import uniform
from wagma.errors import InputError
from wagma.scenario import as_table, load, read
from wagma.sections import Section
from wagma.timing.compute import read_compute
from wagma.timing.imbalance import Times

LOGNORMAL = {"kind": "scipy", "distribution": "lognorm", "s": 0.5, "scale": 0.3}
SENTENCES = {"kind": "buckets", "lengths": [10, [20, 40]], "weights": [1, 3], "linear_s": 0.01}
MIXED = [{"weight": 3, **LOGNORMAL}, {"weight": 1, "kind": "constant", "seconds": 2.0}]
EVERY_KIND = [
    {"kind": "constant", "seconds": 0.1},
    LOGNORMAL,
    {"kind": "samples", "seconds": [0.3, 0.1, 0.2]},
    SENTENCES,
    {**SENTENCES, "shared": True},
    {"kind": "mixture", "components": [*MIXED, {"weight": 2, **SENTENCES}]},
    {"kind": "mixture", "components": MIXED, "shared": True},
    {"kind": "trace", "seconds": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]},
]


def times(ranks: int, seed: int = 1, **compute: Any) -> Times:
    return Times(ranks, seed, read_compute(Section("test", "compute", compute)), ())


def seconds(ranks: int, iteration: int = 0, **compute: Any) -> Any:
    return times(ranks, **compute).compute_ns(iteration) * 1e-9


@given(st.sampled_from(EVERY_KIND), st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_the_number_of_ranks_changes_no_time(compute: dict[str, Any], seed: int, iteration: int, ranks: int) -> None:
    few, many = times(ranks, seed, **compute).compute_ns(iteration), times(40, seed, **compute).compute_ns(iteration)
    assert few.dtype == np.int64
    assert few.tolist() == many[:ranks].tolist()


@pytest.mark.parametrize("compute", EVERY_KIND[1:-1], ids=lambda table: str(table["kind"]))
def test_seed_and_iteration_change_the_times(compute: dict[str, Any]) -> None:
    """Over 20 iterations: one alone may happen to pick the same bucket for everyone."""
    runs = [np.array([times(20, seed, **compute).compute_ns(t) for t in range(first, first + 20)]) for seed, first in
            ((1, 0), (2, 0), (1, 100))]  # fmt: skip
    assert not np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_times_of_single_draws_are_those_of_earlier_versions() -> None:
    """Published results hang on them: the purpose is "compute", one uniform, straight through the inverse CDF."""
    u = uniform(1, "compute", np.arange(50), 7)
    assert seconds(50, 7, **LOGNORMAL) == pytest.approx(stats.lognorm(0.5, scale=0.3).ppf(u), abs=1e-9)
    assert seconds(50, 7, kind="samples", seconds=[0.3, 0.1, 0.2]) == pytest.approx(
        np.array([0.1, 0.2, 0.3])[(u * 3).astype(int)]
    )


def test_scipy_distributions_go_through_their_inverse_cdf() -> None:
    assert stats.kstest(seconds(4000, **LOGNORMAL), stats.lognorm(0.5, scale=0.3).cdf).pvalue > 0.01


def test_samples_are_resampled() -> None:
    values, counts = np.unique(seconds(3000, 4, kind="samples", seconds=[0.3, 0.1, 0.2]), return_counts=True)
    assert values == pytest.approx([0.1, 0.2, 0.3])
    assert counts.min() > 900


def test_a_mixture_has_the_weighted_sum_of_its_components_distributions() -> None:
    slow = {"kind": "scipy", "distribution": "gamma", "a": 4.0, "scale": 0.2}
    drawn = seconds(6000, kind="mixture", components=[{"weight": 3, **LOGNORMAL}, {"weight": 1, **slow}])
    fast = stats.lognorm(0.5, scale=0.3)
    assert stats.kstest(drawn, lambda x: 0.75 * fast.cdf(x) + 0.25 * stats.gamma(4.0, scale=0.2).cdf(x)).pvalue > 0.01
    assert stats.kstest(drawn, fast.cdf).pvalue < 1e-6


def test_what_a_mixture_picks_says_nothing_about_the_value() -> None:
    """Two components alike but for a shift: had the value been drawn by the picking draw, a component would have half of it."""
    half = {"weight": 1, "kind": "scipy", "distribution": "uniform", "scale": 1.0}
    drawn = seconds(4000, kind="mixture", components=[half, {**half, "loc": 10.0}])
    for part in (drawn[drawn < 5], drawn[drawn > 5] - 10):
        assert 1800 < part.size < 2200
        assert stats.kstest(part, "uniform").pvalue > 0.01


def test_a_bucket_in_a_mixture_is_picked_by_a_draw_of_its_own() -> None:
    """Every pair of component and bucket occurs, as often as the product of their weights says."""
    buckets = {"weight": 1, "kind": "buckets", "lengths": [1, 2]}
    drawn = seconds(8000, kind="mixture", components=[{**buckets, "linear_s": 1.0}, {**buckets, "linear_s": 10.0}])
    values, counts = np.unique(drawn, return_counts=True)
    assert values == pytest.approx([1, 2, 10, 20])
    assert counts == pytest.approx(np.full(4, 2000), rel=0.1)


def test_weights_need_not_sum_to_one_and_small_ones_count() -> None:
    components = [{"weight": w, "kind": "constant", "seconds": s} for w, s in ((997.0, 1.0), (3.0, 2.0))]
    t = times(1000, kind="mixture", components=components)
    hits = sum(np.count_nonzero(t.compute_ns(i) == 2_000_000_000) for i in range(200))
    assert hits == pytest.approx(600, abs=4 * np.sqrt(600))


def test_buckets_cost_a_quadratic_of_the_length() -> None:
    drawn = seconds(4000, kind="buckets", lengths=[10, 20, 30], weights=[1, 2, 1], base_s=0.5, linear_s=0.01, quadratic_s=0.001)
    values, counts = np.unique(drawn, return_counts=True)
    assert values == pytest.approx([0.5 + 0.1 + 0.1, 0.5 + 0.2 + 0.4, 0.5 + 0.3 + 0.9])
    assert counts == pytest.approx([1000, 2000, 1000], rel=0.12)


def test_lengths_are_uniform_within_a_bucket() -> None:
    drawn = seconds(4000, 1, **SENTENCES)
    wide = drawn[drawn > 0.15]
    assert wide.size == pytest.approx(3000, rel=0.05)
    assert stats.kstest(wide, stats.uniform(0.2, 0.2).cdf).pvalue > 0.01
    assert drawn[drawn < 0.15] == pytest.approx(np.full(4000 - wide.size, 0.1))


def test_a_shared_bucket_is_the_same_for_all_ranks_of_an_iteration() -> None:
    """Their lengths in it stay their own, and the bucket changes from iteration to iteration as its weight says."""
    t = times(16, **SENTENCES, shared=True)
    drawn = np.array([t.compute_ns(i) for i in range(1000)]) * 1e-9
    short = drawn < 0.15
    assert (short.all(axis=1) | ~short.any(axis=1)).all()
    assert np.count_nonzero(short.all(axis=1)) == pytest.approx(250, abs=55)
    assert len(np.unique(drawn[~short])) == np.count_nonzero(~short)


def test_a_shared_mixture_is_one_component_for_all_ranks_of_an_iteration() -> None:
    t = times(16, kind="mixture", components=MIXED, shared=True)
    slow = np.array([t.compute_ns(i) == 2_000_000_000 for i in range(400)])
    assert (slow.all(axis=1) | ~slow.any(axis=1)).all()
    assert np.count_nonzero(slow.all(axis=1)) == pytest.approx(100, abs=35)


RUN = "rank,iteration,seconds\n0,0,0.1\n1,0,0.4\n0,1,0.2\n1,1,0.5\n0,2,0.3\n1,2,6e-1\n"


def scenario_file(folder: Path, text: str | bytes = RUN) -> Path:
    """A scenario of 3 ranks that takes its times from run.csv beside it."""
    (folder / "run.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    path = folder / "mine.toml"
    path.write_text(
        'name = "mine"\nranks = 3\niterations = 4\n[model]\nparameters = 5\n[work]\nper_rank = 1\nunit = "steps"\n'
        '[compute]\nkind = "trace"\nfile = "run.csv"\n'
    )
    return path


@pytest.mark.parametrize("text", [RUN, "\ufeff" + RUN.replace("\n", "\r\n"), RUN.replace(",", ", ") + "\n\n"])
def test_a_run_of_ones_own_repeats_by_rank_and_iteration(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file lies beside the scenario, wherever the program runs; spreadsheets' line ends and byte order marks are fine."""
    path = scenario_file(tmp_path, text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    t = Times(3, 0, load(path).compute, ())
    assert [t.compute_ns(i).tolist() for i in range(4)] == [
        [100_000_000, 400_000_000, 100_000_000],
        [200_000_000, 500_000_000, 200_000_000],
        [300_000_000, 600_000_000, 300_000_000],
        [100_000_000, 400_000_000, 100_000_000],
    ]


def test_a_trace_of_the_simulation_carries_the_times_of_the_file(tmp_path: Path) -> None:
    path = scenario_file(tmp_path)
    scenario = load(path)
    header = json.loads(json.dumps(as_table(scenario)))
    (tmp_path / "run.csv").unlink()
    again = read(header, "trace.jsonl")
    assert Times(3, 0, again.compute, ()).compute_ns(2).tolist() == Times(3, 0, scenario.compute, ()).compute_ns(2).tolist()
    assert as_table(again) == as_table(scenario)


def test_another_file_can_be_set(tmp_path: Path) -> None:
    """Relative to the scenario too, and although the scenario has one already."""
    scenario = load(scenario_file(tmp_path))
    (tmp_path / "other.csv").write_text("rank,iteration,seconds\n0,0,7\n")
    other = scenario.replace({"compute.file": "other.csv"})
    assert Times(2, 0, other.compute, ()).compute_ns(5).tolist() == [7_000_000_000] * 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", ":1: the header is '': must be rank,iteration,seconds"),
        ("rank,seconds\n0,1\n", ":1: the header is 'rank,seconds'"),
        ("0,0,0.1\n", ":1: the header is '0,0,0.1'"),
        ("rank,iteration,seconds\n", ": no times"),
        (RUN.replace("1,1,0.5", "1,1"), ":5: 2 fields"),
        (RUN.replace("1,1,0.5", "1,1,0.5,"), ":5: 4 fields"),
        (RUN.replace("1,1,0.5", "1,1,nan"), ":5: seconds = 'nan': must be a finite number, greater than 0 and at most 1e+09"),
        (RUN.replace("1,1,0.5", "1,1,-inf"), ":5: seconds = '-inf'"),
        (RUN.replace("1,1,0.5", "1,1,inf"), ":5: seconds = 'inf'"),
        (RUN.replace("1,1,0.5", "1,1,-0.5"), ":5: seconds = '-0.5'"),
        (RUN.replace("1,1,0.5", "1,1,0"), ":5: seconds = '0'"),
        (RUN.replace("1,1,0.5", "1,1,"), ":5: seconds = ''"),
        (RUN.replace("1,1,0.5", "1,1,fast"), ":5: seconds = 'fast'"),
        (RUN.replace("1,1,0.5", "-1,1,0.5"), ":5: rank = '-1': must be a whole number, at least 0"),
        (RUN.replace("1,1,0.5", "1,1.0,0.5"), ":5: iteration = '1.0'"),
        (RUN.replace("1,1,0.5", "1,²,0.5"), ":5: iteration = '²'"),
        (RUN.replace("1,1,0.5", "1,0,0.5"), ":5: rank = 1, iteration = 0: must not be there twice"),
        (RUN.replace("1,1,0.5\n", ""), ": rank = 1, iteration = 1: missing; there must be every rank from 0 to 1 in every "),
        (RUN.replace("\n0,", "\n2,"), ": rank = 0, iteration = 0: missing"),
        (RUN + "123456789123456789,0,1\n", ": rank = 2, iteration = 0: missing"),
        (RUN + '0,3,"0.1\n', ":8: not valid CSV"),
        (b"rank,iteration,seconds\n0,0,\xff\n", ": cannot be read: not UTF-8 text"),
    ],
)
def test_a_run_with_a_mistake_is_one_line(text: str | bytes, complaint: str, tmp_path: Path) -> None:
    path = scenario_file(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(str(tmp_path / "run.csv") + complaint)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    path = scenario_file(tmp_path)
    os.mkfifo(tmp_path / "pipe.csv")
    pipe = "neither a pipe nor a device can be read again for each run"
    for name, reason in (("pipe.csv", pipe), ("nowhere.csv", "No such file or directory"), (".", "Is a directory")):
        with pytest.raises(InputError, match=re.escape(reason)) as caught:
            load(path, {"compute.file": name})
        assert str(caught.value) == f"{tmp_path / name}: cannot be read: {reason}"


def mixture(**component: Any) -> dict[str, Any]:
    return {"kind": "mixture", "components": [{"weight": 1, "kind": "constant", "seconds": 1, **component}]}


@pytest.mark.parametrize(
    ("compute", "complaint"),
    [
        ({"kind": "scipy", "distribution": "norm", "scale": 1.0}, "can be negative"),
        ({"kind": "scipy", "distribution": "pareto", "b": 0.5, "scale": 1.0}, "no finite mean"),
        ({"kind": "scipy", "distribution": "pareto", "b": 1}, "no finite mean"),
        ({"kind": "scipy", "distribution": "cauchy"}, "no finite mean"),
        ({"kind": "scipy", "distribution": "levy"}, "no finite mean"),
        # scipy has -9.7 and 2.4 for the means of these two, by analytic continuation.
        ({"kind": "scipy", "distribution": "invweibull", "c": 0.9}, "no finite mean"),
        ({"kind": "scipy", "distribution": "invweibull", "c": 0.4}, "no finite mean"),
        ({"kind": "scipy", "distribution": "lognorm", "s": 30}, "no finite mean"),
        ({"kind": "scipy", "distribution": "weibull_min", "c": 0.01}, "has a mean of 9.33262e+157 s; must be at most 1e+09 s"),
        ({"kind": "scipy", "distribution": "expon", "scale": 1e12}, "has a mean of 1e+12 s"),
        ({"kind": "scipy", "distribution": "nope"}, "continuous distribution in scipy.stats"),
        ({"kind": "scipy", "distribution": "lognorm"}, "compute.s: missing"),
        ({"kind": "samples", "seconds": []}, "non-empty array"),
        ({"kind": "samples", "seconds": [1.0, float("nan")]}, "non-empty array"),
        ({"kind": "samples", "seconds": [10**400]}, "at most 1e+09"),
        ({"kind": "constant", "seconds": -1}, "greater than 0"),
        ({"kind": "constant", "seconds": True}, "finite number"),
        ({"kind": "constant", "seconds": 1e10}, "at most 1e+09"),
        ({"kind": "constant", "seconds": 10**400}, "finite number"),
        ({"kind": "weibull"}, "must be one of constant, scipy, samples, buckets, mixture, trace"),
        ({"kind": "mixture"}, "compute.components = []: must be a non-empty array of tables"),
        ({"kind": "mixture", "components": 3}, "compute.components = 3: must be an array of tables"),
        ({"kind": "mixture", "components": [1]}, "compute.components[0] = 1: must be a table"),
        (mixture(weight=0), "compute.components[0].weight = 0: must be a finite number, greater than 0"),
        (mixture(seconds=-1), "compute.components[0].seconds = -1"),
        (mixture(kind="mixture"), "components[0].kind = \"mixture\": must be one of constant, scipy, samples, buckets"),
        (mixture(kind="trace"), "compute.components[0].kind = \"trace\""),
        (mixture(scale=2), "compute.components[0].scale = 2: unknown key; allowed: weight, kind, seconds"),
        ({**mixture(), "shared": 1}, "compute.shared = 1: must be true or false"),
        ({**mixture(), "weights": [1]}, "compute.weights = [1]: unknown key; allowed: kind, components, shared"),
        ({"kind": "buckets", "linear_s": 1}, "compute.lengths: missing"),
        ({**SENTENCES, "lengths": 3}, "compute.lengths = 3: must be a non-empty array"),
        ({**SENTENCES, "lengths": []}, "compute.lengths = []: must be a non-empty array"),
        ({**SENTENCES, "lengths": [1, 0]}, "compute.lengths = [1, 0]"),
        ({**SENTENCES, "lengths": [1, [3, 2]]}, "pairs [shortest, longest]"),
        ({**SENTENCES, "lengths": [1, [2, 3, 4]]}, "pairs [shortest, longest]"),
        ({**SENTENCES, "weights": [1]}, "compute.weights = [1]: must be one for each of the 2 lengths"),
        ({**SENTENCES, "weights": [1, 0]}, "compute.weights = [1, 0]"),
        ({**SENTENCES, "linear_s": 0}, "compute.linear_s = 0: must be a finite number, greater than 0"),
        ({**SENTENCES, "base_s": -1}, "compute.base_s = -1"),
        ({**SENTENCES, "quadratic_s": float("nan")}, "compute.quadratic_s = nan"),
        ({**SENTENCES, "quadratic_s": 1e9}, "the longest takes 1.6e+12 s; must be at most 1e+09 s"),
        ({**SENTENCES, "shared": "yes"}, "compute.shared = \"yes\""),
        ({**SENTENCES, "length": 3}, "compute.length = 3: unknown key"),
        ({"kind": "trace"}, "compute.file: missing"),
        ({"kind": "trace", "file": 3}, "compute.file = 3: must be a non-empty string"),
        ({"kind": "trace", "file": "run.csv", "seconds": [[1]]}, "give either file or seconds"),
        ({"kind": "trace", "seconds": []}, "compute.seconds = []: must be equally long arrays"),
        ({"kind": "trace", "seconds": [[1, 2], [1]]}, "must be equally long arrays"),
        ({"kind": "trace", "seconds": [[1, -2]]}, "greater than 0"),
        ({"kind": "trace", "seconds": [[1]], "shared": True}, "compute.shared = true: unknown key"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_bad_compute_is_one_line(compute: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)) as caught:
        read_compute(Section("file.toml", "compute", compute))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("file.toml: compute")


@pytest.mark.parametrize(
    "compute",
    [
        {"distribution": "pareto", "b": 1.5},
        {"distribution": "lognorm", "s": 5.0, "scale": 1e-3},
        {"distribution": "rel_breitwigner", "rho": 36.5},
        {"distribution": "invweibull", "c": 1.2},
        {"distribution": "geninvgauss", "p": 2.3, "b": 1.5},
    ],
    ids=lambda compute: compute["distribution"],
)
def test_heavy_tails_with_a_mean_are_drawn_from(compute: dict[str, Any]) -> None:
    drawn = read_compute(Section("test", "compute", {"kind": "scipy", **compute})).draw(1, "compute", np.arange(1000), 0)
    assert (drawn > 0).all()
    assert np.unique(drawn).size == 1000


def test_a_draw_that_nobody_can_wait_for_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean is finite, and once in 10^9 draws a rank would compute for longer than can be counted."""
    compute = read_compute(Section("f.toml", "compute", {"kind": "scipy", "distribution": "pareto", "b": 1.01}))
    ranks = np.arange(3)
    assert (compute.draw(1, "compute", ranks, 0) < 1e9).all()
    monkeypatch.setattr("wagma.timing.compute.uniform", lambda *_: np.array([0.5, 1 - 2.0**-53, 0.5]))
    with pytest.raises(
        InputError, match=r"^f\.toml: compute: pareto .*a rank would compute for .*e\+15 s; must be at most 1e\+09 s"
    ):
        compute.draw(1, "compute", ranks, 0)
