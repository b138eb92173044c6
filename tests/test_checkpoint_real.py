"""Checkpoints of real processes: killed at any moment, and `wagma train` that goes on."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("wagma._native")

import wagma
from tests.mpi_launch import mpiexec, start
from wagma.cli import main


def kill_and_go_on(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    models: dict[
        int, set[str]
    ] = {}  # by iteration, as the runs had them; one that was killed is run through again, with others
    complete = 0
    for _ in range(kills):
        job = start(2, "checkpoint.py", str(folder))
        job.wait_for("saved", 2 + rng.randrange(4), 40)
        time.sleep(rng.uniform(0, 0.03))
        victims = [int(pid) for pid in re.findall(r"pid (\d+) of rank", job.output())]
        os.kill(rng.choice(victims), signal.SIGKILL)
        ended = job.wait(30)
        assert ended.returncode != 0
        loaded = set(re.findall(r"loaded (\d+) (\w+) by rank \d\.", ended.output))
        if complete:
            assert len(loaded) == 1, ended.output  # both ranks the same
            ((iteration, digest),) = loaded
            assert int(iteration) >= complete  # what was said to be saved is there
            assert digest in models[int(iteration)]
        for iteration, digest in re.findall(r"at (\d+) (\w+) by rank \d\.", ended.output):
            models.setdefault(int(iteration), set()).add(digest)
        complete = max(int(done) for done in re.findall(r"saved (\d+) by rank 0\.", ended.output))
        newest = wagma.find_checkpoint(folder)
        assert newest is not None


@pytest.mark.mpi
@pytest.mark.slow
def test_kill_9(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, 2, 1)


@pytest.mark.mpi
@pytest.mark.long
@pytest.mark.timeout(300)
def test_kill_9_many_times(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, 25, 2)


@pytest.mark.mpi
@pytest.mark.slow
def test_train_goes_on(tmp_path: Path) -> None:
    done = mpiexec(2, "train_resumed.py", str(tmp_path))
    assert done.returncode == 0, done.output
    assert "allreduce_sgd: the same 8 models" in done.output
    assert "local_sgd: the same 8 models" in done.output
    for rank in range(2):
        said = re.findall(rf"rank {rank}: checkpoint (.*)", done.output)
        assert re.search(r"of another scenario: training.learning_rate was 0.\d+, is 0.5$", said[0])
        assert re.search(r"iteration-12: 12 iterations are done, and iterations = 12: nothing left$", said[1])


def test_train_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        (["--resume", str(tmp_path)], f"--resume {tmp_path}: no complete checkpoint there"),
        (["--checkpoint", "x", "--algorithms", "wagma_sgd,local_sgd"], "--checkpoint x: of one run; --algorithms names 2"),
        (["--checkpoint", "x", "--algorithm", "sgp"], "--checkpoint x: sgp has no syncs, at which all ranks hold one model"),
    ):
        assert main(["train", "digits", *arguments]) == 2
        assert reason in capsys.readouterr().err
