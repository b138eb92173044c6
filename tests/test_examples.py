"""The programs in examples/ run as their docstrings say."""

from __future__ import annotations

import re
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
    # Lines of several ranks may run into each other on their way through mpiexec.
    distances = re.findall(r"distance to the truth (\d\.\d{4})", output)
    assert len(distances) == 4
    assert len(set(distances)) == 1
    assert float(distances[0]) < 0.1


@pytest.mark.mpi
def test_group_allreduce() -> None:
    mpiexec = str(Path(sys.executable).parent / "mpiexec")
    output = run(mpiexec, "-n", "4", sys.executable, "-m", "mpi4py", str(EXAMPLES / "group_allreduce.py"))
    final = re.search(r"all ranks: (\S+), equal: True", output)
    assert final is not None
    # Each rank adds 0.1 twenty times; averages, late ones too, stay between the smallest and the largest model.
    assert 2.0 <= float(final[1]) <= 5.0


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert all(path.name in tested for path in EXAMPLES.glob("*.py"))
