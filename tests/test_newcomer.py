"""What a newcomer ran into; each stays mended."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest

import wagma
from wagma.cli import main
from wagma.errors import InputError
from wagma.scenario import load

ROOT = Path(__file__).parent.parent
QUICK = ["--ranks", "4", "--iterations", "5", "--algorithm", "wagma_sgd"]


def simulated(capsys: pytest.CaptureFixture[str], *arguments: str) -> float:
    assert main(["simulate", "resnet50_imagenet", *QUICK, "--json", "-", *arguments]) == 0
    return float(json.loads(capsys.readouterr().out)["results"][0]["iteration_s"]["p99"])


def test_an_item_of_an_array_and_a_whole_section_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    """The other delay model of the paper, as docs/algorithms.md prints it, and by index."""
    everybody = '{kind="exactly", count=4, delay_s=0.38}'
    assert simulated(capsys, "--set", f"imbalance=[{everybody}]") == pytest.approx(1.0, rel=0.05)
    assert simulated(capsys, "--set", f"imbalance.0={everybody}") == pytest.approx(1.0, rel=0.05)
    assert simulated(capsys, "--set", 'compute={kind="constant", seconds=2.0}', "--set", "imbalance=[]") == pytest.approx(
        2, rel=0.05
    )


def test_delay_applies_to_an_imbalance_that_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    imbalance = 'imbalance=[{kind="exactly", count=4, delay_s=9.0}]'
    assert simulated(capsys, "--set", imbalance, "--delay", "0.38") == pytest.approx(1.0, rel=0.05)


def test_options_may_give_what_a_file_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "scenarios" / "resnet50_imagenet.toml").read_text().replace("iterations = 200\n", "")
    scenario = tmp_path / "lacking.toml"
    scenario.write_text(text)
    assert main(["simulate", str(scenario), *QUICK, "-q"]) == 0
    assert main(["simulate", str(scenario), "-q"]) == 2
    assert "iterations: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--delay", "1e300"],
        ["--delay", "1e10"],
        ["--set", "compute.seconds=1e300"],
        ["--set", "work.per_rank=1e308"],
        ["--set", "network.latency_ns=1e300"],
        ["--iterations", "1.5"],
        ["--delay", "x"],
        ["--trace", "-"],
    ],
)
def test_values_that_nothing_can_have_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "resnet50_imagenet", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("wagma: error: ")


def test_messages_name_a_packaged_scenario_by_its_name() -> None:
    with pytest.raises(InputError, match=r"^resnet50_imagenet: iterations = 0: must be"):
        load("resnet50_imagenet", {"iterations": 0})


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_standard_output_that_takes_nothing(redirection: str) -> None:
    command = f"'{sys.executable}' -m wagma scenarios list {redirection}"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stderr.count("\n")) in ((0, 0), (1, 1))


def trace_of(tmp_path: Path) -> list[str]:
    path = tmp_path / "run.jsonl"
    assert main(["simulate", "resnet50_imagenet", *QUICK, "--trace", str(path), "-q"]) == 0
    # Without seals, as from an older version: a line that is changed below would break its own.
    return [re.sub(',"seal":"[0-9a-f]*"', "", line) for line in path.read_text().splitlines()]


def judged(tmp_path: Path, lines: list[str]) -> int:
    path = tmp_path / "changed.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return main(["validate", str(path)])


def test_a_number_too_large_to_count_to_is_a_violation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = trace_of(tmp_path)
    assert judged(tmp_path, lines) == 0
    assert judged(tmp_path, [line.replace('"iteration":4,', '"iteration":99999999999,') for line in lines]) == 1


def test_a_header_alone_is_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judged(tmp_path, trace_of(tmp_path)[:1]) == 1
    assert "no record at all" in capsys.readouterr().out


def test_a_report_says_how_much_of_the_run_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged(tmp_path, trace_of(tmp_path))
    assert "20 of 20 iterations of 4 of 4 ranks" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "value"), [("world", "mars"), ("digests", "frob"), ("value", "loss")])
def test_a_header_that_says_something_else(name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, *rest = trace_of(tmp_path)
    changed = json.dumps({**json.loads(header), name: value})
    assert judged(tmp_path, [changed, *rest]) == 2
    assert f"{name} = '{value}': must be one of" in capsys.readouterr().err


def test_things_that_are_no_communicator_are_named() -> None:
    pytest.importorskip("wagma._native")
    with pytest.raises(InputError, match="comm is a str: must be an mpi4py communicator"):
        wagma.GroupAllreduce("world", np.zeros(3))


def test_an_optimizer_of_another_model_is_refused() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("wagma._native")
    from wagma.real.local import run_local

    def program(comm: object) -> None:
        optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
        wagma.distribute(optimizer, torch.nn.Linear(2, 2), comm=comm)

    with pytest.raises(InputError, match="parameters that are not the model's"):
        run_local(1, program)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"training.batch_size": 1000, "work.per_rank": 1000}, "the smallest shard of 4 has 359 images"),
        ({"training.batch_size": 16}, "work.per_rank = 32: must be training.batch_size, 16"),
    ],
)
def test_throughput_counts_the_batch_that_is_trained(changes: dict[str, int], complaint: str) -> None:
    pytest.importorskip("torch")
    from wagma.workloads import replicas

    with pytest.raises(InputError, match=complaint):
        replicas(load("digits", changes))


@pytest.mark.mpi
def test_an_mpiexec_of_another_mpi_is_refused() -> None:
    """What its variables announce and what MPI sees differ: each process would train alone, and all would write one trace."""
    environment = {**os.environ, "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
    command = [sys.executable, "-m", "wagma", "train", "digits", "--iterations", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2, done.stderr
    assert "mpiexec started 4 processes, of which this is rank 0" in done.stderr
    assert "mpiexec is of another MPI than mpi4py's" in done.stderr


@pytest.mark.mpi
def test_a_clone_in_the_current_folder_does_not_hide_the_installed_package(tmp_path: Path) -> None:
    """The ranks run in the user's folder, which may hold a `wagma/` without a kernel."""
    shutil.copytree(ROOT / "wagma", tmp_path / "wagma", ignore=shutil.ignore_patterns("*.so", "__pycache__", "real"))
    program = Path(sys.executable).with_name("wagma")
    assert "kernel         available" in processes.run([str(program), "env"], tmp_path)
    processes.run([str(program), "train", "digits", "-n", "2", "--iterations", "2", "-q"], tmp_path)


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.timeout(400)
def test_many_more_ranks_than_cores_end_well(tmp_path: Path) -> None:
    """Python and torch take seconds to leave when cores are few: that is no failure."""
    ranks = str(6 * (os.cpu_count() or 1))
    processes.run([sys.executable, "-m", "wagma", "train", "digits", "-n", ranks, "--iterations", "10"], tmp_path, timeout=300)
