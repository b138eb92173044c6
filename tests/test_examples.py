"""The programs in examples/ run as their docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_simulate_cluster() -> None:
    lines = run(sys.executable, str(EXAMPLES / "simulate_cluster.py")).splitlines()
    figures = {(line.split()[1], line.split()[3]): float(line.split()[4]) for line in lines}
    assert figures["0.64", "wagma_sgd"] > figures["0.64", "allreduce_sgd"]


@pytest.mark.mpi
def test_train_torch() -> None:
    mpiexec = str(Path(sys.executable).parent / "mpiexec")
    output = run(mpiexec, "-n", "4", sys.executable, "-m", "mpi4py", str(EXAMPLES / "train_torch.py"))
    distances = {line.rsplit(" ", 1)[1] for line in output.splitlines()}
    assert output.count("distance") == 4
    assert len(distances) == 1
    assert float(distances.pop()) < 0.1


@pytest.mark.mpi
def test_group_allreduce() -> None:
    mpiexec = str(Path(sys.executable).parent / "mpiexec")
    output = run(mpiexec, "-n", "4", sys.executable, "-m", "mpi4py", str(EXAMPLES / "group_allreduce.py"))
    # The sync of the last iteration leaves the mean of 0..3, plus 20 updates of 0.1.
    assert output.splitlines()[-1].endswith("mean 3.500")


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert all(path.name in tested for path in EXAMPLES.glob("*.py"))
