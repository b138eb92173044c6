"""Draws in blocks, which the fast engine lives on, and the benchmarks."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from engines import table

from wagma.cli import main
from wagma.scenario import read
from wagma.timing.imbalance import Times

COMPUTES: list[dict[str, Any]] = [
    {"kind": "constant", "seconds": 0.1},
    {"kind": "samples", "seconds": [1, 2, 3]},
    {"kind": "scipy", "distribution": "lognorm", "s": 0.5, "scale": 1e-3},
    {"kind": "scipy", "distribution": "gamma", "a": 2.5, "scale": 1e-3},
    {"kind": "mixture", "components": [
        {"weight": 1, "kind": "constant", "seconds": 1}, {"weight": 2, "kind": "scipy", "distribution": "expon"},
        {"weight": 1, "kind": "buckets", "lengths": [10, [20, 40]], "linear_s": 0.1},
    ]},
    {"kind": "mixture", "shared": True, "components": [
        {"weight": 1, "kind": "constant", "seconds": 1}, {"weight": 2, "kind": "scipy", "distribution": "expon"},
    ]},
    {"kind": "buckets", "lengths": [10, [20, 40]], "linear_s": 0.1, "quadratic_s": 0.01, "shared": True},
    {"kind": "trace", "seconds": [[1, 2, 3], [4, 5, 6]]},
]  # fmt: skip
IMBALANCES: list[dict[str, Any]] = [
    {"kind": "independent", "probability": 0.3, "delay_s": 0.3},
    {"kind": "exactly", "count": 2, "delay_s": 0.1},
    {"kind": "linear", "shuffled": True, "delay_s": 0.1},
    {"kind": "linear", "delay_s": 0.2},
    {"kind": "fixed", "count": 2, "delay_s": 1},
    {"kind": "fixed", "ranks": [1, 3], "delay_s": 1},
    {"kind": "burst", "probability": 0.1, "length": 4, "delay_s": 1},
]
NOISE = {"detours_per_s": 10, "detour_s": 0.01, "per_iteration": {"kind": "scipy", "distribution": "expon", "scale": 1e-4}}


@pytest.mark.parametrize("compute", COMPUTES, ids=lambda compute: compute["kind"])
def test_a_block_of_draws_has_the_bits_of_single_ones(compute: dict[str, Any]) -> None:
    for ranks, imbalance in itertools.product((5, 13), ([], *([one] for one in IMBALANCES), IMBALANCES)):
        scenario = read(table(ranks, compute=compute, imbalance=imbalance, noise=NOISE), "block")
        times = Times(ranks, 7, scenario.compute, scenario.imbalance, scenario.noise)
        computed = times.compute_block(3, 6)
        delayed = times.delay_block(3, computed)
        for row in range(6):
            assert (computed[row] == times.compute_ns(3 + row)).all()
            assert (delayed[row] == times.delay_ns(3 + row)).all()


def test_benchmarks_measure_and_tell(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    command = ["bench", "engines", "-n", "4", "--iterations", "3", "--simpy-iterations", "2", "--repetitions", "1"]
    assert main([*command, "--algorithms", "sgp,d_psgd", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [result["algorithm"] for result in document["results"]] == ["sgp", "d_psgd"]
    assert [result["messages_per_iteration"] for result in document["results"]] == [4, 8]
    assert all(rate > 0 for result in document["results"] for kind in ("yardstick", "simpy", "fast") for rate in result[kind])
    assert main([*command, "--algorithms", "sgp"]) == 0
    assert "fast / yardstick" in capsys.readouterr().out
    picture = tmp_path / "cost.png"
    curve = ["bench", "cost", "-n", "2,4", "--iterations", "2", "--no-limits", "--algorithms", "ideal"]
    assert main([*curve, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "memory of the largest" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["engines", "--repetitions", "0"], "--repetitions 0: must be at least 1"),
        (["engines", "--ranks", "1"], "--ranks 1: must be at least 2"),
        (["engines", "--ranks", "4", "--iterations", "1000000000000"], "GiB of memory on the fast engine"),
        (["cost", "--ranks", "4", "--iterations", "1000000000000", "--no-limits"], "GiB of memory on the fast engine"),
        (["engines", "--algorithms", "ideal"], "none of them sends messages"),
        (["cost", "--algorithms", "swarm_sgd"], "none of them runs on the fast engine"),
        (["cost", "--plot", "cost.txt"], "must end in .png"),
    ],
)
def test_benchmarks_refuse_nonsense(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
