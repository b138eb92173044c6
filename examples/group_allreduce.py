"""The collective alone, on numpy arrays, without torch: mpiexec -n 4 python -m mpi4py examples/group_allreduce.py."""

import numpy as np
from mpi4py import MPI

import wagma

comm = MPI.COMM_WORLD
model = np.full(1000, comm.rank, np.float64)

with wagma.GroupAllreduce(comm, model, group_size="sqrt", sync_period=5) as collective:
    for iteration in range(20):
        model += 0.1  # stands for an update
        outcome = collective.average()
        if comm.rank == 0:
            print(f"iteration {iteration}: fresh {outcome.fresh}, group of {outcome.group_length}, mean {model.mean():.3f}")
