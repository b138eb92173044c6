"""Which rank a process is, before anything is distributed; what is said where MPI does not know of the others; shards and threads."""

from __future__ import annotations

import builtins
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import mpi_launch
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("wagma._native")

import wagma
from wagma.cli import main
from wagma.errors import InputError, MissingDependencyError
from wagma.real.launching import announced, ranks
from wagma.real.launching.announced import Announced, check_world

MPICH = "MPICH Version:      5.0.2\nMPICH Release date: ..."
OPEN_MPI = "Open MPI v5.0.11, package: ..., ident: 5.0.11\0"
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
BATCH = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2"}
#: Hydra on two nodes of a Slurm job: its proxies are tasks of srun, ranks inherit their variables.
HYDRA_IN_SLURM = HYDRA | STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/train.py"])
    for name in [*TORCHRUN, *STEP, *HYDRA, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (TORCHRUN, Announced("torchrun", 4, 3)),
        ({"RANK": "0", "WORLD_SIZE": "4"}, None),  # some program's own: torchrun says the local rank, too
        (HYDRA, Announced("mpiexec", 4, 2)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, Announced("mpiexec", 2, 1)),
        (HYDRA | TORCHRUN, Announced("mpiexec", 4, 2)),  # ranks of MPI with the variables that torch.distributed wants
        (STEP, Announced("srun", 8, 5)),
        (STEP | {"PMI_RANK": "5", "PMI_SIZE": "8"}, Announced("srun", 8, 5)),
        (HYDRA_IN_SLURM, Announced("mpiexec", 4, 2)),
        (BATCH, None),  # python in a batch script is one process
        ({"WORLD_SIZE": "four", "RANK": "0", "LOCAL_RANK": "0"}, None),
    ],
)
def test_what_launchers_say(environment: dict[str, str], found: Announced | None) -> None:
    assert announced.announced(environment) == found


@pytest.mark.parametrize(
    ("environment", "version", "words"),
    [
        (TORCHRUN, MPICH, ["torchrun started 4 processes", "rank 3", "MPICH Version: 5.0.2", "mpiexec -n 4 python train.py"]),
        (STEP, OPEN_MPI, ["srun started 8 processes", "rank 5", "srun --mpi=pmix (srun --mpi=list", "mpiexec -n 8 python"]),
        (STEP, MPICH, ["srun --mpi=pmi2 ("]),
        (STEP, "Another MPI", ["--mpi=pmix or --mpi=pmi2"]),
        (HYDRA, OPEN_MPI, ["mpiexec started 4 processes", "(Open MPI v5.0.11)", "of another MPI than mpi4py's", "`wagma env`"]),
    ],
)
def test_a_world_of_one_among_several_is_refused(environment: dict[str, str], version: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        check_world(1, version, environment)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    check_world(4, version, environment)  # MPI knows of the others


@pytest.mark.parametrize("environment", [{}, BATCH, TORCHRUN | {"WORLD_SIZE": "1"}, HYDRA | {"PMI_SIZE": "1"} | TORCHRUN])
def test_one_process_may_be_alone(environment: dict[str, str]) -> None:
    check_world(1, MPICH, environment)


@pytest.mark.parametrize(
    ("environment", "local"),
    [
        ({}, None),
        (HYDRA, 2),
        (HYDRA_IN_SLURM, 2),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 1),
        (STEP, 1),
        (STEP | {"SLURM_STEP_NUM_TASKS": "2"}, None),  # tasks of Slurm are not the ranks
    ],
)
def test_the_launcher_knows_the_local_rank(environment: dict[str, str], local: int | None) -> None:
    assert ranks.local_from(environment, 5, 8) == local


@pytest.fixture
def no_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("mpi4py"):
            raise ImportError("no module named mpi4py")
        return real(name, *arguments, **more)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", imported)
    monkeypatch.setattr("wagma.real.modules.import_module", imported)


@pytest.mark.usefixtures("no_mpi4py")
def test_without_mpi_a_program_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (wagma.rank(), wagma.world_size(), wagma.local_rank()) == (0, 1, 0)
    for name, value in HYDRA.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        MissingDependencyError, match=r"^mpiexec started 4 processes, of which this is rank 2: mpi4py cannot be"
    ) as caught:
        wagma.rank()
    assert "\n" not in str(caught.value)


def shards(samples: int, world_size: int, epoch: int = 0, **options: Any) -> list[list[int]]:
    found = []
    for rank in range(world_size):
        sampler = wagma.ShardSampler(samples, rank=rank, world_size=world_size, **options)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(sampler) == len(found[-1])
    return found


@pytest.mark.parametrize(("samples", "world_size"), [(10, 4), (8, 4), (7, 7), (1, 1), (1000, 3)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_are_the_whole_set_once(samples: int, world_size: int, shuffle: bool) -> None:
    found = shards(samples, world_size, shuffle=shuffle)
    assert sorted(chain.from_iterable(found)) == list(range(samples))
    lengths = {len(one) for one in found}
    assert max(lengths) - min(lengths) <= 1
    equal = shards(samples, world_size, shuffle=shuffle, drop_last=True)
    assert {len(one) for one in equal} == {samples // world_size}
    assert all(one == long[: len(one)] for one, long in zip(equal, found, strict=True))


def test_orders_come_from_seed_and_epoch() -> None:
    assert shards(50, 2) == shards(50, 2)
    orders = [shards(50, 2, epoch, seed=seed) for epoch, seed in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert len({str(order) for order in orders}) == 4  # epoch 1 of seed 0 is not epoch 0 of seed 1
    # Pinned: what was trained with a seed can be trained again, with any version of torch and numpy.
    assert shards(8, 2, 3, seed=5) == [[5, 7, 1, 0], [6, 3, 4, 2]]
    assert shards(8, 2, shuffle=False) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_shuffled_samples_are_everywhere_equally_often() -> None:
    """Sample 0's place over 400 epochs of 10 samples: 40 of each, within five standard deviations."""
    places = [shards(10, 1, epoch)[0].index(0) for epoch in range(400)]
    counts = np.bincount(places, minlength=10)
    assert np.abs(counts - 40).max() <= 5 * (40 * 0.9) ** 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wagma.ShardSampler(3, rank=0, world_size=4), "data: 3 samples for 4 ranks: must be at least one for each"),
        (lambda: wagma.ShardSampler(8, rank=4, world_size=4), "rank = 4: must be from 0 to 3"),
        (lambda: wagma.ShardSampler(8, rank=-1, world_size=4), "rank = -1: must be from 0 to 3"),
        (lambda: wagma.ShardSampler(8, rank=0, world_size=0), "world_size = 0: must be at least 1"),
        (lambda: wagma.ShardSampler(iter([1]), rank=0, world_size=1), "data is a list_iterator: must have a length"),
    ],
)
def test_shards_that_cannot_be(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_ranks_share_the_cores_that_they_may_run_on() -> None:
    from wagma.real.launching.threads import describe, share

    def threads(*where: tuple[str, range]) -> list[int]:
        texts = [describe(host, sorted(cores)) for host, cores in where]
        return [share(texts, rank) for rank in range(len(texts))]

    eight = ("a", range(8))
    assert threads(eight) == [8]
    assert threads(*[eight] * 3) == [2, 2, 2]
    assert threads(*[eight] * 9) == [1] * 9
    assert threads(("a", range(4)), ("a", range(4, 8))) == [4, 4]  # bound
    assert threads(eight, ("b", range(8))) == [8, 8]  # two machines
    assert threads(eight, ("a", range(2))) == [7, 1]  # one of them bound: six cores, and half of two
    assert share([f"a {'#4096'}"] * 4, 0) == 1024
    scattered = describe("a", range(0, 1000, 2))
    assert scattered == "a #500"  # too many spans to be told


def test_torch_is_told_only_if_nobody_else_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from wagma.real.launching import threads

    own, told = {"now": 8}, []
    monkeypatch.setattr(torch, "get_num_threads", lambda: own["now"])
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(threads, "by_itself", lambda cores: {8, 4})
    monkeypatch.setattr(threads, "gather_text", lambda comm, text, limit: [text] * comm.size)
    for name in threads.CHOSEN:
        monkeypatch.delenv(name, raising=False)

    class Comm:
        rank, size = 0, 4

    def set_to() -> list[int]:
        told.clear()
        threads.share_cores(Comm(), 1.0)
        return list(told)

    assert set_to() == [2]
    own["now"] = 4  # second threads of cores left out
    assert set_to() == [2]
    own["now"] = 3  # torch.set_num_threads(3)
    assert set_to() == []
    own["now"] = 8
    for name in threads.CHOSEN:
        monkeypatch.setenv(name, "8")
        assert set_to() == []
        monkeypatch.delenv(name)
    Comm.size = 1
    assert set_to() == [8]  # no other rank: as it was


def test_a_core_and_its_second_thread_count_once() -> None:
    from wagma.real.launching.threads import by_itself

    cores = sorted(os.sched_getaffinity(0))
    assert len(cores) in by_itself(cores)
    assert all(1 <= number <= len(cores) for number in by_itself(cores))


PROGRAM = """
import json, os, sys
import wagma
print(json.dumps([wagma.rank(), wagma.world_size(), wagma.local_rank()]), flush=True)
if sys.argv[1:]:
    import torch
    before = torch.get_num_threads()
    model = torch.nn.Linear(2, 2)
    wagma.distribute(torch.optim.SGD(model.parameters(), lr=0.1), model).close()
    print(json.dumps({"threads": [before, torch.get_num_threads()]}), flush=True)
    for name in list(os.environ):
        if name.startswith(("OMPI_COMM", "MPI_LOCAL")):
            del os.environ[name]
    print(json.dumps({"asked": wagma.local_rank()}), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "train.py"
    file.write_text(PROGRAM)
    return file


def lines(text: str) -> list[Any]:
    """The JSON values of an output, even where several ranks' lines ran together."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (match := re.compile(r"[\[{]").search(text, at)) is not None:
        value, at = decoder.raw_decode(text, match.start())
        found.append(value)
    return found


@pytest.mark.mpi
def test_ranks_know_themselves(program: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    environment["PRTE_MCA_hwloc_default_binding_policy"] = "none"  # Open MPI would bind each rank to a core
    # Of the launcher's variables MKL reads this one, and divides the cores itself; nobody does so elsewhere.
    python = ["env", "-u", "MPI_LOCALNRANKS", sys.executable, "-m", "mpi4py"]
    command = [mpi_launch.executable(), "-n", "2", *python, str(program), "distribute"]
    finished = mpi_launch.Launched(command, environment).wait(60)
    assert finished.returncode == 0, finished.output
    found = lines(finished.output)
    assert sorted(one for one in found if isinstance(one, list)) == [[0, 2, 0], [1, 2, 1]]
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    threads = [one["threads"] for one in found if "threads" in one]
    assert len(threads) == 2
    assert all(after == min(before, share) for before, after in threads), threads
    if len(os.sched_getaffinity(0)) > 1:
        assert max(before for before, _ in threads) > 1  # so there was something to share
    assert sorted(one["asked"] for one in found if "asked" in one) == [0, 1]  # the ranks told each other


@pytest.mark.mpi
def test_a_program_started_alone_is_one_rank(program: Path) -> None:
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert lines(done.stdout) == [[0, 1, 0]], done.stderr


@pytest.mark.mpi
def test_torchrun_is_told_what_to_do(program: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--no-python",
        sys.executable,
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode != 0
    assert "torchrun started 2 processes, of which this is rank 0; to MPI" in done.stderr
    assert "start them with mpiexec -n 2 python train.py" in done.stderr
    assert not lines(done.stdout)  # no rank has taken itself for the only one


@pytest.mark.parametrize(("environment", "launcher", "size"), [(TORCHRUN, "torchrun", 4), (STEP, "srun", 8)])
def test_wagma_train_is_started_once(
    environment: dict[str, str], launcher: str, size: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "digits"]) == 2
    error = capsys.readouterr().err
    assert f"run it once, without {launcher}, with -n {size}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("gpus", "local", "name"), [(0, 3, "cpu"), (4, 3, "cuda:3"), (2, 3, "cuda:1"), (1, 3, "cuda:0")])
def test_ranks_share_the_gpus(gpus: int, local: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(ranks, "local_rank", lambda: local)
    assert str(wagma.device()) == name
