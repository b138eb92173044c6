"""What the environment tells of how this process was started, which MPI may know nothing of.

`torchrun`, an `srun` whose `--mpi` is not that of the MPI library, and the mpiexec of another library all start processes of which each is
rank 0 of 1 to MPI: every one of them would train alone, and nobody would notice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wagma.errors import InputError
from wagma.real import library

#: How many ranks an MPI launcher has started, and which of them this is: MPICH and its relatives (srun --mpi=pmi2, too), Open MPI, MVAPICH.
MPI_VARIABLES = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
)
TORCH_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
#: srun sets the first for its tasks only. SLURM_NTASKS alone is set in a batch script, too, where one `python` is one process.
SLURM_VARIABLES = (("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("SLURM_NTASKS", "SLURM_PROCID"))
#: srun's --mpi for an MPI library's family.
SLURM_MPI = {"Open MPI": "pmix", "MPICH": "pmi2"}


@dataclass(frozen=True, slots=True)
class Announced:
    """Who started this process, as which of how many."""

    launcher: str  # mpiexec, torchrun or srun
    size: int
    rank: int


def announced(environment: Mapping[str, str] = os.environ) -> Announced | None:
    """What the launcher says of this process; None if none has left a word. An MPI launcher's word comes before any other's."""
    return _by_mpi(environment) or _by_torchrun(environment) or _by_srun(environment)


def check_world(size: int, version: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError, saying what to do, if MPI's world is this process alone, and its launcher has started more.

    version: what MPI says of itself (MPI_Get_library_version).
    """
    found = announced(environment)
    if size > 1 or found is None or found.size <= 1:
        return
    started = f"{found.launcher} started {found.size} processes, of which this is rank {found.rank}; to MPI"
    raise InputError(f"{started} ({library.short_version(version)}) it is the only one: {_remedy(found, version)}")


def _remedy(found: Announced, version: str) -> str:
    name = Path(sys.argv[0]).name
    script = name if name.endswith(".py") and name != "__main__.py" else "train.py"
    mpiexec = f"mpiexec -n {found.size} python {script}"
    if found.launcher == "torchrun":
        return f"wagma's ranks are those of MPI; start them with {mpiexec}"
    if found.launcher == "srun":
        kind = SLURM_MPI.get(library.family_of(version) or "")
        return f"start them with srun --mpi={kind or 'pmix or --mpi=pmi2'} (srun --mpi=list shows what there is), or {mpiexec}"
    return "mpiexec is of another MPI than mpi4py's; `wagma env` shows the one that belongs to it"


def _by_mpi(environment: Mapping[str, str]) -> Announced | None:
    found = _first(environment, MPI_VARIABLES)
    if found is None:
        return None
    # srun with another library's --mpi leaves PMI_ variables as well. Hydra in a Slurm job has its proxies started by srun, one a node.
    by_srun = _number(environment, "SLURM_STEP_NUM_TASKS") == found[0] and "OMPI_COMM_WORLD_SIZE" not in environment
    return Announced("srun" if by_srun else "mpiexec", *found)


def _by_torchrun(environment: Mapping[str, str]) -> Announced | None:
    if not all(name in environment for name in TORCH_VARIABLES):
        return None
    found = _first(environment, (TORCH_VARIABLES[:2],))
    return None if found is None else Announced("torchrun", *found)


def _by_srun(environment: Mapping[str, str]) -> Announced | None:
    if "SLURM_STEP_ID" not in environment and "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    found = _first(environment, SLURM_VARIABLES)
    return None if found is None else Announced("srun", *found)


def _first(environment: Mapping[str, str], names: tuple[tuple[str, ...], ...]) -> tuple[int, int] | None:
    """(size, rank) from the first pair of variables whose size is there."""
    for size, rank in names:
        if (number := _number(environment, size)) is not None:
            return number, _number(environment, rank) or 0
    return None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else None
