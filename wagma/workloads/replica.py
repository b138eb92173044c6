"""One rank's copy of a workload: model, optimizer and place in the data. Both worlds call exactly these methods."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from wagma.core.effects import Value
from wagma.scenario import Scenario, Training
from wagma.scores import Score
from wagma.workloads.flat import FlatView, flat_views
from wagma.workloads.optimizers import SGD, AdamW


class Stream(Protocol):
    """One rank's way through the data. What it keeps from iteration to iteration is its own; it is a function of seed and models."""

    @property
    def work(self) -> float | None:
        """What the last `loss` was of, in the scenario's unit; None: what the scenario says for every iteration."""

    def loss(self, model: torch.nn.Module, iteration: int) -> torch.Tensor:
        """Loss of the iteration's batch, a scalar with a gradient. Iterations come in order."""


class Workload(Protocol):
    """Data and model: what a replica is made of."""

    @property
    def score(self) -> Score:
        """What `evaluate` measures."""

    def to(self, device: torch.device) -> None:
        """Models will be there: batches, and what they are judged by, come there, too. Before the first `stream`."""

    def model(self) -> torch.nn.Module:
        """A new model, the same for every rank, in host memory."""

    def stream(self, rank: int) -> Stream:
        """A rank's way through the data, from its beginning."""

    def evaluate(self, model: torch.nn.Module) -> float:
        """The score, on held-out data."""


class EvenWorkload(Workload, Protocol):
    """One whose batches are equally large for every rank and iteration, so that many ranks' can be computed at once."""

    def batch(self, rank: int, iteration: int) -> npt.NDArray[np.int64]:
        """Which examples are the rank's batch of the iteration."""

    def examples(self, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, labels) of training examples."""

    def criterion(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss over examples."""


class Replica:
    """A rank's model, its local optimizer and its place in the data."""

    def __init__(self, workload: Workload, scenario: Scenario, rank: int, device: str = "cpu") -> None:
        # One thread, since the number of threads decides in which order a kernel adds up, and so the bits.
        torch.set_num_threads(1)
        self.rank = rank
        self.workload = workload
        self._device = torch.device(device)
        workload.to(self._device)
        self.model = workload.model().to(self._device)
        self.optimizer = make_optimizer(self.model, scenario.training)
        self._learning_rate, self._decay = scenario.training.learning_rate, scenario.training.decay
        self._decays_at, self._iterations = scenario.training.decay_from * scenario.iterations, scenario.iterations
        self.last_loss: torch.Tensor | None = None
        self._stream = workload.stream(rank)
        self._model, self._gradient = flat_views(self.model)

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on one."""
        return self._device.type == "cuda"

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold beside model and optimizer: the stream, if the iteration's number is not all that it depends on."""
        return {"stream": self._stream} if hasattr(self._stream, "load_state_dict") else {}

    def warm_up(self) -> None:
        """A gradient that leaves nothing behind: the first one pays for torch's own set-up, which is no iteration's time."""
        self.workload.stream(self.rank).loss(self.model, 0).backward()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad()
        self.settle()

    def settle(self) -> None:
        """Until a GPU has done what this thread has given it, in the stream that it works in: what was computed is computed then."""
        if self.on_gpu:
            torch.cuda.current_stream(self._device).synchronize()

    def compute_gradient(self, iteration: int) -> float | None:
        """Forward and backward pass on this rank's batch of the iteration; how much work that was, None: as the scenario says."""
        if self._decay:
            over = max(0.0, iteration - self._decays_at) / max(1.0, self._iterations - self._decays_at)
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate * (1 - self._decay * over)
        self.optimizer.zero_grad()
        loss = self._stream.loss(self.model, iteration)
        loss.backward()  # type: ignore[no-untyped-call]
        self.last_loss = loss.detach()
        return self._stream.work

    def apply_update(self) -> None:
        """One step of the local optimizer."""
        self.optimizer.step()

    def flat(self, value: Value) -> FlatView:
        """The model or the gradient as one array."""
        return self._model if value is Value.MODEL else self._gradient

    def evaluate(self, model: npt.NDArray[Any] | None = None) -> float:
        """Score of `model` (flat), or of the replica's own; `model` replaces the own one."""
        if model is not None:
            self._model.write(model)
        return self.workload.evaluate(self.model)


def make_optimizer(model: torch.nn.Module, training: Training) -> torch.optim.Optimizer:
    """The local optimizer of a scenario."""
    if training.optimizer == "adamw":
        return AdamW(model.parameters(), training.learning_rate)
    return SGD(model.parameters(), training.learning_rate, training.momentum)
