"""Goes on from the newest checkpoint, if there is one, and saves at each sync until it is killed.

Says which model it has at each sync before it saves it, and which one it has loaded.
"""

import hashlib
import os
import sys

import torch
from mpi4py import MPI

import wagma

folder = sys.argv[1]
comm = MPI.COMM_WORLD
torch.manual_seed(comm.rank)
model = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.Linear(300, 100))  # saving takes as long as training
optimizer = wagma.distribute(
    torch.optim.AdamW(model.parameters(), lr=1e-3), model, "wagma_sgd", sync_period=2, timeout_s=30, watchdog_s=0
)


def digest() -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()[:16]


print(f"pid {os.getpid()} of rank {comm.rank}", flush=True)
if wagma.find_checkpoint(folder):
    saved = wagma.load_checkpoint(folder, optimizer)
    print(f"loaded {saved.iteration} {digest()} by rank {comm.rank}.", flush=True)
with optimizer:
    while True:
        optimizer.zero_grad()
        model(torch.randn(4, 200)).square().mean().backward()
        optimizer.step()
        if optimizer.synced:
            print(f"at {optimizer.iteration} {digest()} by rank {comm.rank}.", flush=True)
            wagma.save_checkpoint(folder, optimizer)
            print(f"saved {optimizer.iteration} by rank {comm.rank}.", flush=True)
