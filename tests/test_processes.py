"""The tests' own way of running commands: when a limit is exceeded, one sees where every rank stood."""

from __future__ import annotations

import sys
from pathlib import Path

import processes
import pytest

SLEEPER = """
import time
from mpi4py import MPI

def stands_here():
    time.sleep(60)

stands_here()
"""


@pytest.mark.mpi
def test_stacks_of_all_ranks_are_shown(tmp_path: Path) -> None:
    program = tmp_path / "sleeper.py"
    program.write_text(SLEEPER)
    command = ["mpiexec", "-n", "3", sys.executable, "-m", "mpi4py", str(program)]
    with pytest.raises(pytest.fail.Exception) as failed:
        processes.run(command, tmp_path, timeout=6)
    assert str(failed.value).count("in stands_here") == 3


def test_output_of_a_failure_is_shown(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="exit status 3"):
        processes.run([sys.executable, "-c", "import sys; sys.exit(3)"], tmp_path)
