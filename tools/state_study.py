"""Measures what docs/training.md says about optimizer_state and buffers: WAGMA-SGD on real ranks, with injected lateness.

    .venv/bin/python tools/state_study.py state      (about a minute)
    .venv/bin/python tools/state_study.py buffers

Four ranks (threads) train a convolutional network with BatchNorm on scikit-learn's digits. Each iteration takes a rank PACE_S, by sleeping,
and with probability 1/8 four times as long. Draws of data, models and delays come from the seeds; which rank overtakes
which is decided by the machine, as always with wait-avoiding averages, so figures differ from run to run by less than the seeds do.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import wagma
from wagma.draws import bits, uniform
from wagma.real.local import run_local
from wagma.workloads.seeded import seeded
from wagma.workloads.shards import deal

RANKS, BATCH, SYNC_PERIOD = 4, 16, 10
SEEDS = (1, 2, 3)
PACE_S, LATE, TIMES = 0.006, 1 / 8, 4

Optimizers = dict[str, Callable[[Any], torch.optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "SGD, momentum 0.9": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.003),
}


def network(seed: int) -> torch.nn.Module:
    """Two convolutions with BatchNorm, and a linear layer."""
    with seeded(seed):
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, padding=1, stride=2), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
            torch.nn.Flatten(), torch.nn.Linear(32 * 4 * 4, 10),
        )  # fmt: skip


class Data:
    """A fifth is held out; the rest is dealt to the ranks evenly ("iid") or by label, so that each knows few of them ("by_label")."""

    def __init__(self, seed: int, shards: str) -> None:
        images, labels = load_digits(return_X_y=True)
        split = train_test_split(
            (images / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels, test_size=0.2, stratify=labels, random_state=0
        )
        self.train, self.test, self.train_labels, self.test_labels = (torch.from_numpy(part) for part in split)
        self.shards = deal(split[2], RANKS, seed, shards, 0.3)
        self._seed = seed

    def batch(self, rank: int, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Drawn with replacement from the rank's shard."""
        shard = self.shards[rank]
        chosen = shard[
            (bits(self._seed, "state_study.batch", np.arange(BATCH) + BATCH * rank, iteration) % len(shard)).astype(int)
        ]
        return self.train[chosen], self.train_labels[chosen]

    def loss(self, model: torch.nn.Module) -> tuple[float, float]:
        """(cross entropy, accuracy) on the held-out data, as a program evaluates: with the buffers that the model has."""
        model.eval()
        with torch.no_grad():
            outputs = model(self.test)
        model.train()
        loss = torch.nn.functional.cross_entropy(outputs, self.test_labels)
        return float(loss), float((outputs.argmax(1) == self.test_labels).double().mean())


def run(
    seed: int, make: Callable[[Any], torch.optim.Optimizer], shards: str, looks: tuple[int, ...], **options: Any
) -> list[Any]:
    """By rank and look: (loss, accuracy) of the consolidated model, and of the rank's own one."""
    data = Data(seed, shards)

    def program(comm: Any) -> list[Any]:
        model = network(seed)
        seen = []
        with wagma.distribute(make(model.parameters()), model, sync_period=SYNC_PERIOD, comm=comm, **options) as optimizer:
            for iteration in range(max(looks)):
                began = time.monotonic()
                optimizer.zero_grad()
                images, labels = data.batch(comm.rank, iteration)
                torch.nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
                late = uniform(seed, "state_study.late", np.array([comm.rank]), iteration)[0] < LATE
                time.sleep(max(0.0, began + PACE_S * (TIMES if late else 1) - time.monotonic()))
                optimizer.step()
                if iteration + 1 in looks:
                    own = data.loss(model)
                    with optimizer.consolidated():
                        seen.append((data.loss(model), own))
        return seen

    return run_local(RANKS, program, timeout_s=120.0)


def cell(values: list[float], scale: float = 1.0, digits: int = 3) -> str:
    """Mean, and the range over seeds."""
    low, high = (f"{scale * one:.{digits}f}" for one in (min(values), max(values)))
    return f"{scale * statistics.mean(values):.{digits}f} ({low} to {high})"


def state() -> None:
    """Held-out loss of the consolidated model early and late, and its accuracy."""
    looks = (30, 100)
    print(
        "shards | optimizer | optimizer_state | "
        + " | ".join(f"loss at {look}" for look in looks)
        + f" | accuracy at {looks[-1]}, %"
    )
    for shards in ("iid", "by_label"):
        for name, make in OPTIMIZERS.items():
            for policy in ("local", "average", "reset"):
                runs = [run(seed, make, shards, looks, optimizer_state=policy)[0] for seed in SEEDS]
                losses = [cell([one[look][0][0] for one in runs]) for look in range(len(looks))]
                print(" | ".join([shards, name, policy, *losses, cell([one[-1][0][1] for one in runs], 100, 1)]), flush=True)


def buffers() -> None:
    """Just after a sync all models are equal but for their buffers: accuracy of the worst and the best rank's own, and of the mean."""
    look = (50,)
    print("shards | buffers | worst rank, % | best rank, % | consolidated, %")
    for shards in ("iid", "by_label"):
        for policy in ("local", "average", "broadcast"):
            runs = [run(seed, OPTIMIZERS["SGD, momentum 0.9"], shards, look, buffers=policy) for seed in SEEDS]
            own = [[rank[0][1][1] for rank in one] for one in runs]
            cells = [[min(one) for one in own], [max(one) for one in own], [one[0][0][0][1] for one in runs]]
            print(" | ".join([shards, policy, *(cell(values, 100, 1) for values in cells)]), flush=True)


def main() -> int:
    """One of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("state", "buffers"))
    torch.set_num_threads(1)
    {"state": state, "buffers": buffers}[parser.parse_args().table]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
