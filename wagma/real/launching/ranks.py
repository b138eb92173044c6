"""Which rank this process is, of how many, and what is its own on this machine: `wagma.rank()`, `wagma.world_size()`, `wagma.local_rank()`.

They answer before anything is distributed, and in a program that was started alone: that is rank 0 of 1, without MPI too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wagma.errors import MissingDependencyError
from wagma.real.launching.announced import announced
from wagma.real.limited import gather_text
from wagma.real.modules import world
from wagma.real.node import machine

if TYPE_CHECKING:
    import torch

#: This rank's number among those on its machine: Open MPI, MPICH (Intel's, too), MVAPICH, Cray.
LOCAL_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "PMI_LOCAL_RANK")
GATHER_LIMIT_S = 60.0


def rank() -> int:
    """This process's rank in MPI's world, 0..world_size() - 1; 0 in a program that was started alone.

    Raises InputError if a launcher started several processes of which MPI knows nothing (torchrun, srun without MPI),
    MissingDependencyError if it did so and there is no mpi4py, or no MPI library.
    """
    comm = _world()
    return 0 if comm is None else int(comm.rank)


def world_size() -> int:
    """The number of ranks in MPI's world; 1 in a program that was started alone. Raises as `rank` does."""
    comm = _world()
    return 1 if comm is None else int(comm.size)


def local_rank() -> int:
    """This rank's number among those on its machine, from 0: which of the machine's GPUs is its own, say. Raises as `rank` does.

    The launcher's variable, where it leaves one (mpiexec of MPICH, Intel, Cray, Open MPI and MVAPICH; srun). Otherwise ranks tell
    each other where they are: then all of them have to call it, and CollectiveTimeout is raised after a minute if one does not.
    """
    comm = _world()
    if comm is None or comm.size == 1:
        return 0
    told = local_from(os.environ, int(comm.rank), int(comm.size))
    if told is not None:
        return told
    machines = gather_text(comm, machine(), GATHER_LIMIT_S)
    return machines[: comm.rank].count(machines[comm.rank])


def device() -> torch.device:
    """This rank's GPU, `cuda:local_rank` modulo the number of those it sees, or the CPU. Raises as `local_rank` does."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("cpu")


def local_from(environment: Mapping[str, str], rank: int, size: int) -> int | None:
    """The launcher's word for the local rank; None if there is none that holds for rank `rank` of `size`."""
    for name in LOCAL_VARIABLES:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    # Slurm's holds only if srun has started the ranks: a process manager's own proxies are its tasks otherwise.
    task = environment.get("SLURM_STEP_NUM_TASKS"), environment.get("SLURM_PROCID")
    if task == (str(size), str(rank)) and environment.get("SLURM_LOCALID", "").isdigit():
        return int(environment["SLURM_LOCALID"])
    return None


def _world() -> Any | None:
    """MPI's world; None if there is no MPI, and nothing says that it should be there."""
    try:
        return world()
    except MissingDependencyError as error:
        found = announced()
        if found is not None and found.size > 1:
            raise MissingDependencyError(
                f"{found.launcher} started {found.size} processes, of which this is rank {found.rank}: {error}"
            ) from error
        return None
