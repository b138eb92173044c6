"""Trains with everything to be seen: on both transports with uneven ends, then with a rank that fails."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from ranks import RANK

import wagma
from wagma.workloads.optimizers import SGD

SLOW = 2


def train(transport: str, iterations: int, trace: Path, fail_at: int = -1) -> None:
    """One loop; its loss is the rank plus 1."""
    torch.set_num_threads(1)
    model = torch.nn.Linear(5, 3)
    optimizer = SGD(model.parameters(), lr=0.1)  # torch's own takes each process a second to import
    with wagma.distribute(
        optimizer, model, sync_period=6, transport=transport, progress=True, report_every=0.1, trace=trace
    ) as wrapped:
        for t in range(iterations):
            if t == fail_at and RANK == 1:
                raise RuntimeError("bad batch")
            wrapped.zero_grad()
            model(torch.ones(2, 5)).square().mean().backward()
            time.sleep(0.03 if RANK == SLOW else 0.01)
            wrapped.log(loss=RANK + 1.0, samples=4)
            wrapped.step()


def main() -> None:
    """All three."""
    folder = Path(sys.argv[1])
    for transport in ("shm", "mpi"):
        train(transport, 12 + 6 * (RANK == 1), folder / f"{transport}.jsonl")
    train("shm", 1000, folder / "failed.jsonl", fail_at=20)


if __name__ == "__main__":
    main()
