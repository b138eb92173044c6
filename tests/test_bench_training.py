"""`wagma bench training`: what the figures are made of, and that ranks measure and tell. No time is judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from devices import DEVICES

from wagma.cli import main
from wagma.commands.bench_device import NO_TIMES
from wagma.commands.bench_training import describe
from wagma.real.launching.channel import RANK_VARIABLES
from wagma.studies import training
from wagma.studies.training import Settings


@pytest.fixture(autouse=True)
def _no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def alone(loop: str, repetition: int, seconds: list[float]) -> dict[str, Any]:
    return {"loop": loop, "repetition": repetition, "seconds": seconds}


def together(loop: str, repetition: int, seconds: float) -> dict[str, Any]:
    return {"loop": loop, "count": 100, "repetition": repetition, "seconds": seconds, "iterations": 10, "parameters": 96}


def test_overheads_by_hand() -> None:
    blocks = [
        alone("bare", 0, [0.2, 0.2, 9.0]), alone("wagma_sgd", 0, [0.21, 0.22, 0.2]),  # medians 0.2 and 0.21
        alone("bare", 1, [0.4, 0.4, 0.4]), alone("wagma_sgd", 1, [0.4, 0.4, 0.4]),
        alone("bare", 2, [0.2, 0.2, 0.2]), alone("wagma_sgd", 2, [0.204, 0.204, 0.204]),
    ]  # fmt: skip
    settings = {"parameters": 100, "batch": 7, "threads": 2, "library": "MPICH", "device": None, "transport": None}
    result = {"blocks": blocks, **settings}
    found = training.overhead_of(result, {"loops": ["bare", "wagma_sgd"]})
    bare, one = found["results"]
    assert (found["batch"], bare["overhead"], bare["median_s"]) == (7, 0, 0.2)
    assert one["overhead"] == pytest.approx(0.02)  # of 5 %, 0 % and 2 %, repetition by repetition
    assert one["overhead_spread"] == pytest.approx([0.0, 0.05])
    assert (one["median_s"], one["iterations"]) == (0.21, 9)
    text = describe({"overhead": found, "repetitions": 3})
    assert "+2.0 % (+0.0 % to +5.0 %)" in text
    assert text.count("over bare") == 1


def test_ratios_to_ddp_by_hand() -> None:
    blocks = [together("ddp", n, s) for n, s in enumerate((0.1, 0.2, 0.4))]
    blocks += [together("wagma_sgd", n, s) for n, s in enumerate((0.05, 0.2, 0.3))]
    found = training.balanced_of(
        {"blocks": blocks, "threads": 1, "library": "MPICH"},
        {"loops": ["wagma_sgd", "ddp"], "counts": [(100, 10)], "ranks": 4, "batch": 32},
    )
    one, ddp = found["results"]
    assert one["ratio_to_ddp"] == pytest.approx(0.75)
    assert one["ratio_to_ddp_spread"] == pytest.approx([0.5, 1.0])
    assert (one["median_s"], one["spread_s"], one["iterations"], one["parameters"]) == (0.2, [0.05, 0.3], 30, 96)
    assert ddp["ratio_to_ddp"] == 1
    assert "0.75 (0.50 to 1.00)" in describe({"balanced": found, "repetitions": 3})


def test_blocks_hold_whole_sync_periods() -> None:
    assert [training.most_iterations(count) for count in (1000, 1_000_000, 4_000_000, 25_000_000)] == [100, 100, 20, 10]


def test_models_have_about_as_many_parameters_as_asked_for() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("wagma._native")
    from wagma.real.bench.training import model_of

    for parameters in (1000, 100_000, 1_000_000, 3_000_000):
        model, width = model_of(parameters)
        assert sum(one.numel() for one in model.parameters()) == pytest.approx(parameters, rel=0.1)
        assert model(torch.ones(2, width)).shape == (2, width)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "both"], "'both': must be of overhead, balanced"),
        (["-n", "1"], "--ranks 1: must be at least 2"),
        (["--iteration", "0"], "--iteration 0: must be above 0"),
        (["--iteration", "nan"], "--iteration nan: must be above 0"),
        (["--parameters", "0"], "--parameters 0: must be at least 1"),
        (["--batch", "0"], "--batch 0: must be at least 1"),
        (["--iterations", "15"], "--iterations 15: must be a multiple of sync_period, 10"),
        (["--repetitions", "0"], "--repetitions 0: must be at least 1"),
        (["--json", "no/such/folder/x"], "there is no folder"),
        (["--device", "tpu"], "'tpu': must be cpu, cuda, cuda:N or emulated"),
        (
            ["--device", "emulated", "--part", "overhead,balanced"],
            "--part overhead,balanced: with --device one rank is measured",
        ),
        (["--device", "emulated", "-n", "3"], "--ranks 3: of balanced, which is not measured: with --device one rank is"),
        (["--device", "emulated", "--count", "5,600000"], "--count 5,600000: of balanced, which is not measured"),
        (["--part", "overhead", "--batch", "32"], "--batch 32: of balanced, which is not measured: --part overhead; leave it"),
        (["--part", "balanced", "--iteration", "0.5"], "--iteration 0.5: of overhead, which is not measured: --part balanced"),
    ],
)
def test_it_refuses_nonsense(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "training", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_limits_grow_with_what_is_asked_for() -> None:
    few, many = Settings(repetitions=1), Settings(repetitions=10)
    assert all(0 < few.limit_s(part) < many.limit_s(part) < 1e6 for part in training.PARTS)


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_one_rank_is_measured(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("wagma._native")
    from wagma.real.bench import training as ranks
    from wagma.real.local import run_local

    monkeypatch.setattr(ranks, "library", lambda: "threads")  # asking MPI would make a rank of this process
    what = Settings(parameters=2000, iteration_s=0.003, iterations=4, repetitions=2, device=device).specification("overhead")
    told: list[tuple[int, int]] = []
    (result,) = run_local(1, lambda comm: ranks.overhead(comm, what, lambda done, total: told.append((done, total))))
    assert told == [(n, 8) for n in range(1, 9)]
    found = training.overhead_of(result, what)
    assert [row["loop"] for row in found["results"]] == list(training.ALONE_ON_DEVICE if device else training.ALONE)
    assert (found["device"] or {"kind": None})["kind"] == device
    assert (found["transport"] or "").startswith("CUDA IPC on " if device == "cuda" else "IPC on " if device else "")
    assert ("exchanging: " in describe({"overhead": found, "repetitions": 2})) == (device is not None)
    assert (NO_TIMES in describe({"overhead": found, "repetitions": 2})) == (device == "emulated")
    assert all(row["iterations"] == 8 and row["median_s"] > 0 for row in found["results"])
    assert found["results"][0]["overhead"] == 0
    assert found["batch"] >= 1


#: In a process whose emulated device delays what it is given, and is small: a model that fits, and one that does not.
EXCHANGE = """
import statistics
from wagma.errors import OutOfDeviceMemory
from wagma.real.bench import training as ranks
from wagma.real.local import run_local
from wagma.studies.training import Settings, overhead_of

ranks.library = lambda: "threads"
for parameters in (2000, 1_000_000):
    what = Settings(parameters=parameters, iteration_s=0.003, iterations=5, repetitions=1, device="emulated").specification("overhead")
    try:
        (result,) = run_local(1, lambda comm: ranks.overhead(comm, what, None))
        print(*(row["median_s"] for row in overhead_of(result, what)["results"]))
    except OutOfDeviceMemory as error:
        print(f"OutOfDeviceMemory: {error}")
"""


def test_exchanging_is_done_by_the_device() -> None:
    """Each operation of a stream begins up to 20 ms later: of the loops only the one that exchanges has any.

    It has several, each with 10 ms on average; a busy machine slows all loops down alike, and by less.
    """
    pytest.importorskip("torch")
    pytest.importorskip("wagma._native")
    done = subprocess.run(
        [sys.executable, "-c", EXCHANGE], capture_output=True, text=True, timeout=100, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WAGMA_EMULATED_DELAY_US": "20000", "WAGMA_EMULATED_MEMORY": "8000000"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    times, refused = done.stdout.splitlines()
    *others, exchanging = map(float, times.split())
    assert exchanging > max(others) + 20e-3
    assert refused.startswith("OutOfDeviceMemory: rank 0: "), refused


@pytest.mark.mpi
def test_balanced_ranks_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--part", "balanced", "-n", "2", "--count", "500", "--batch", "2", "--iterations", "10", "--repetitions", "1"]
    status = main(["bench", "training", *arguments, "--json", "-"])
    out, err = capsys.readouterr()
    assert status == 0, err
    found = json.loads(out)
    assert (found["schema"], "overhead" in found) == (1, False)
    rows = found["balanced"]["results"]
    assert [row["loop"] for row in rows] == list(training.TOGETHER)
    assert all(row["iterations"] == 10 and row["median_s"] > 0 for row in rows)
    assert rows[-1]["ratio_to_ddp"] == 1
