"""Real ranks as threads: a scenario trained with its trace, and programs whose models are exact numbers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from wagma.algorithms import ALGORITHMS, specification
from wagma.real.local import LocalCommunicator, run_local
from wagma.real.seeing.recorder import assemble
from wagma.real.wrapper.distribute import distribute
from wagma.scenario import Scenario
from wagma.trace import Trace
from wagma.workloads import replicas
from wagma.workloads.optimizers import SGD

Delay = Callable[[int, int], float]


@contextlib.contextmanager
def registered(name: str) -> Iterator[None]:
    """Forget an algorithm that the test registers inside."""
    try:
        yield
    finally:
        ALGORITHMS.pop(name, None)


def train_locally(
    scenario: Scenario, algorithm: str, delay: Delay, counts: Sequence[int] | None = None, *, resident: bool = False
) -> Trace:
    """Train on threads; delay(rank, iteration) seconds come before each step. counts: iterations of each rank."""
    settings = scenario.settings_of(algorithm)
    own = {key: getattr(settings, key) for key in specification(algorithm).keys}

    def program(comm: LocalCommunicator) -> Any:
        replica = replicas(scenario, range(comm.rank, comm.rank + 1))[0]
        optimizer = distribute(
            replica.optimizer, replica.model, algorithm, settings.group_size, settings.sync_period, comm=comm,
            merge_once=settings.merge_once, settings=own, seed=scenario.seed, record=True, timeout_s=30.0, resident=resident,
        )  # fmt: skip
        recorder = optimizer.recorder
        assert recorder is not None
        comm.allgather(None)
        with optimizer:
            recorder.restart_clock()
            for t in range(scenario.iterations if counts is None else counts[comm.rank]):
                replica.compute_gradient(t)
                if (seconds := delay(comm.rank, t)) > 0:
                    time.sleep(seconds)
                    recorder.delayed(round(seconds * 1e9))
                optimizer.step()
        return optimizer.notes()

    return assemble(scenario, algorithm, specification(algorithm).value, run_local(scenario.ranks, program))


class Numbers:
    """A rank's model of float64, all elements alike, to which each step adds a whole number that tells rank and iteration."""

    def __init__(self, comm: LocalCommunicator, algorithm: str, size: int = 17, **options: Any) -> None:
        self.comm = comm
        self.model = torch.nn.Linear(size, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.model.weight.zero_()
        inner = SGD(self.model.parameters(), lr=1.0)  # torch's own takes processes a second to import
        self.optimizer = distribute(
            inner, self.model, algorithm, comm=comm, timeout_s=options.pop("timeout_s", 30.0), **options
        )

    def step(self, iteration: int) -> None:
        """Add `addend`."""
        self.model.weight.grad = torch.full_like(self.model.weight, -addend(self.comm.rank, iteration))
        self.optimizer.step()

    @property
    def value(self) -> float:
        """Of all elements. A torn model has several."""
        values = self.model.weight.detach().numpy()
        assert (values == values[0, 0]).all(), "torn"
        return float(values[0, 0])


def addend(rank: int, iteration: int) -> float:
    """What a rank's step adds to its model."""
    return float(100 * (rank + 1) + iteration)


def total(counts: Sequence[int]) -> float:
    """Of all updates of all ranks."""
    return float(np.sum([addend(rank, t) for rank, count in enumerate(counts) for t in range(count)]))
