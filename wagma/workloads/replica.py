"""One rank's copy of a workload: model, optimizer and shard. Both worlds call exactly these methods."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from wagma.core.effects import Value
from wagma.scenario import Scenario
from wagma.workloads.flat import FlatView, flat_views


class Workload(Protocol):
    """Data and model: what a replica is made of."""

    def model(self) -> torch.nn.Module:
        """A new model, the same for every rank."""

    def batch(self, rank: int, iteration: int) -> npt.NDArray[np.int64]:
        """Which examples are the rank's batch of the iteration; equally many for every rank and iteration."""

    def examples(self, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, labels) of training examples."""

    def criterion(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss over examples."""

    def loss(self, model: torch.nn.Module, rank: int, iteration: int) -> torch.Tensor:
        """Loss of the rank's batch of the iteration: examples of batch, the model, criterion."""

    def accuracy(self, model: torch.nn.Module) -> float:
        """From 0 to 1, on the held-out data."""


class Replica:
    """A rank's model, its local optimizer (SGD with momentum) and its place in the data."""

    def __init__(self, workload: Workload, scenario: Scenario, rank: int) -> None:
        # One thread, since the number of threads decides in which order a kernel adds up, and so the bits.
        torch.set_num_threads(1)
        self.rank = rank
        self.workload = workload
        self.model = workload.model()
        training = scenario.training
        self.optimizer = torch.optim.SGD(self.model.parameters(), training.learning_rate, training.momentum)
        self._model, self._gradient = flat_views(self.model)

    def compute_gradient(self, iteration: int) -> None:
        """Forward and backward pass on this rank's batch of the iteration."""
        self.optimizer.zero_grad()
        self.workload.loss(self.model, self.rank, iteration).backward()  # type: ignore[no-untyped-call]

    def apply_update(self) -> None:
        """One step of the local optimizer."""
        self.optimizer.step()

    def flat(self, value: Value) -> FlatView:
        """The model or the gradient as one array."""
        return self._model if value is Value.MODEL else self._gradient

    def accuracy(self, model: npt.NDArray[Any] | None = None) -> float:
        """Accuracy of `model` (flat), or of the replica's own; `model` replaces the own one."""
        if model is not None:
            self._model.write(model)
        return self.workload.accuracy(self.model)
