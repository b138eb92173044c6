"""Training with mpi4py and numpy alone, without torch: mpiexec -n 4 python -m mpi4py examples/train_numpy.py.

Least squares by gradient descent; each rank has data of its own, and some have more iterations than others.
"""

import numpy as np
from mpi4py import MPI

import wagma

comm = MPI.COMM_WORLD
draw = np.random.default_rng(comm.rank)
truth = np.linspace(-1, 1, 50)
inputs = draw.normal(size=(400, truth.size))
targets = inputs @ truth + 0.1 * draw.normal(size=400)

model = np.zeros(truth.size)
with wagma.GroupAllreduce(comm, model, group_size="sqrt", sync_period=10) as collective:
    for _ in range(100 + comm.rank):  # whoever is done serves the others until all are
        batch = draw.integers(0, 400, 20)
        error = inputs[batch] @ model - targets[batch]
        model -= 0.2 * inputs[batch].T @ error / batch.size
        collective.average()

distances = comm.gather(np.linalg.norm(model - truth) / np.linalg.norm(truth))
if distances is not None:
    print("distance to the truth:", ", ".join(f"{100 * distance:.1f} %" for distance in distances))
