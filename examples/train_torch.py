"""A plain PyTorch loop on several ranks: mpiexec -n 4 python -m mpi4py examples/train_torch.py.

`-m mpi4py` ends all ranks when one of them raises.
"""

import time

import torch
from mpi4py import MPI

import wagma

rank, ranks = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
torch.set_num_threads(1)  # the ranks share this machine's cores

torch.manual_seed(rank)  # each rank has its own data; the models start from rank 0's
truth = torch.linspace(-1, 1, 64)
inputs = torch.randn(512, 64)
targets = inputs @ truth

model = torch.nn.Linear(64, 1, bias=False)
optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
optimizer = wagma.distribute(optimizer, model, algorithm="wagma_sgd", group_size="sqrt", sync_period=10)

with optimizer:
    for iteration in range(100):
        batch = torch.randint(0, 512, (32,))
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs[batch]).squeeze(1), targets[batch])
        loss.backward()
        if iteration % ranks == rank:  # someone else is slow in every iteration
            time.sleep(0.01)
        optimizer.step()

# 100 is a multiple of sync_period: the run has ended with a sync, and all ranks hold the same model.
error = float((model.weight.detach() - truth).norm())
print(f"rank {rank}: distance to the truth {error:.4f}", flush=True)
