"""What recording and showing cost a step: optimizers that differ in these options alone take turns, iteration by iteration.

    mpiexec -n 2 python -m mpi4py tools/recording_cost.py [WIDTH LAYERS ITERATIONS]

docs/seeing.md gives the figures of 64 2 6000 and of 1024 24 90. Ranks meet before each step, so that none waits in it for another.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

import wagma
from wagma.text import table

KINDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    'record="times"': {"record": "times"},
    "progress": {"progress": lambda _: None},
    "record=True": {"record": True},
}
WARM_UP = 10


def main(width: int, layers: int, iterations: int) -> None:
    """Measure; rank 0 prints a table."""
    torch.set_num_threads(1)
    optimizers, took = [], np.zeros((len(KINDS), iterations))
    for options in KINDS.values():
        model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
        optimizers.append(wagma.distribute(torch.optim.SGD(model.parameters(), lr=0.01), model, sync_period=10, **options))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    turns = np.random.default_rng(1)
    for t in range(iterations):
        for kind in turns.permutation(len(KINDS)):
            MPI.COMM_WORLD.Barrier()
            before = time.perf_counter_ns()
            optimizers[kind].log(loss=1.0, samples=1)
            optimizers[kind].step()
            took[kind, t] = time.perf_counter_ns() - before
    for optimizer in optimizers:
        optimizer.close()
    if MPI.COMM_WORLD.rank == 0:
        us = took[:, WARM_UP:] / 1000
        rows = [
            [
                name,
                f"{np.median(us[kind]):.1f} us",
                f"{np.median(us[kind]) - np.median(us[0]):+.1f} us",
                f"{us[kind].mean():.1f} us",
            ]
            for kind, name in enumerate(KINDS)
        ]
        parameters = layers * (width * width + width)
        print(
            f"{parameters:,} parameters, {iterations} iterations of {MPI.COMM_WORLD.size} ranks, {MPI.Get_library_version().split()[0]}"
        )
        print(table(["asked for", "median step", "over nothing", "mean step"], rows))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4] or ("64", "2", "6000")))
