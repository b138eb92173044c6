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
            print(f"iteration {iteration}: fresh {outcome.fresh}, group of {outcome.group_length}, value {model[0]:.3f}")

# 20 is a multiple of sync_period: the run has ended with a sync, and all ranks hold the same model.
values = comm.gather(model[0])
if values is not None:
    print(f"all ranks: {values[0]:.3f}, equal: {len(set(values)) == 1}")
