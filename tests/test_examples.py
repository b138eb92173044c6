"""The programs in examples/ run as their docstrings say."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import processes
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(ranks: int, name: str, folder: Path) -> str:
    start = ["mpiexec", "-n", str(ranks), sys.executable, "-m", "mpi4py"] if ranks else [sys.executable]
    return processes.run([*start, str(EXAMPLES / name)], folder)


def test_simulate_cluster(tmp_path: Path) -> None:
    lines = run(0, "simulate_cluster.py", tmp_path).splitlines()
    figures = {(line.split()[1], line.split()[3]): float(line.split()[4]) for line in lines}
    assert figures["0.64", "wagma_sgd"] > figures["0.64", "allreduce_sgd"]


def test_own_simpy_environment(tmp_path: Path) -> None:
    lines = run(0, "own_simpy_environment.py", tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["allreduce_sgd", "wagma_sgd"]
    throughput = [float(line.split()[1]) for line in lines]
    assert throughput[1] > throughput[0]
    # An outage takes three seconds, and there was at least one; a job cannot end sooner than its ranks compute.
    for line in lines:
        outages = float(line.split()[7]) / 3
        assert outages == int(outages) > 0
    assert float(lines[0].split()[5]) > 40 * 0.62 + 3


def test_own_algorithm(tmp_path: Path) -> None:
    lines = run(0, "own_algorithm.py", tmp_path).splitlines()
    throughput = {line.split()[0]: float(line.split()[1]) for line in lines}
    assert throughput["fading_sgd"] == throughput["wagma_sgd"] > throughput["allreduce_sgd"]  # what is averaged takes no time
    # test_own_algorithm.py: tests/test_docs.py runs it, as docs/testing.md says.


@pytest.mark.mpi
def test_train_torch(tmp_path: Path) -> None:
    output = run(4, "train_torch.py", tmp_path)
    # Lines of several ranks may run into each other on their way through mpiexec.
    distances = re.findall(r"distance to the truth (\d\.\d{4})", output)
    assert len(distances) == 4
    assert len(set(distances)) == 1
    assert float(distances[0]) < 0.1


@pytest.mark.mpi
def test_group_allreduce(tmp_path: Path) -> None:
    output = run(4, "group_allreduce.py", tmp_path)
    final = re.search(r"all ranks: (\S+), equal: True", output)
    assert final is not None
    # Each rank adds 0.1 twenty times; averages, late ones too, stay between the smallest and the largest model.
    assert 2.0 <= float(final[1]) <= 5.0


@pytest.mark.mpi
def test_train_numpy(tmp_path: Path) -> None:
    found = re.search(r"distance to the truth: (.*)", run(4, "train_numpy.py", tmp_path))
    assert found is not None
    distances = [float(text.removesuffix(" %")) for text in found[1].split(", ")]
    assert len(distances) == 4
    assert max(distances) < 5  # each began at 100 %


@pytest.mark.mpi
def test_train_digits(tmp_path: Path) -> None:
    epochs = re.findall(r"epoch (\d): loss \d\.\d{3}, accuracy (\S+) %", run(2, "train_digits.py", tmp_path))
    assert [int(epoch) for epoch, _ in epochs] == list(range(6))
    accuracies = [float(accuracy) for _, accuracy in epochs]
    assert accuracies[-1] > max(80, accuracies[0])  # one in ten is right by chance


@pytest.mark.mpi
def test_train_lightning(tmp_path: Path) -> None:
    if find_spec("lightning") is None:
        pytest.skip("lightning is not installed: pip install lightning")
    output = run(2, "train_lightning.py", tmp_path)
    distances = re.findall(r"distance to the truth (\d\.\d{4})", output)
    assert len(distances) == 2
    assert len(set(distances)) == 1  # the run has ended with a sync
    assert float(distances[0]) < 0.1


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert all(path.name in tested for path in EXAMPLES.glob("*.py"))
