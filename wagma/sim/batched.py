"""Training of all ranks at once, in virtual time: gradients of many ranks in one batched call, for 64 ranks and more.

A rank's gradient is not needed before its compute time is over. So `compute_gradient` takes a snapshot of its model only, and the first
rank that needs its gradient has those of all ranks that began meanwhile computed with it, in one call over the snapshots: no
rank waits in virtual time for that, and no rank's gradient sees anything that happened after it began. Ranks whose compute times
are alike are all in one batch, whatever the algorithm.

Updates, sums along the association tree and merges are those of the per-rank mode, on rows of a matrix. The gradient may differ from it
by rounding: a batched product is free to add up in an order of its own. docs/compare.md says how far that was seen to lead apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call, grad, vmap

from wagma.core.effects import Value
from wagma.sim.numerics import Replicas

if TYPE_CHECKING:
    from wagma.scenario import Scenario
    from wagma.workloads.replica import EvenWorkload

Array = npt.NDArray[Any]

#: Ranks in one call: enough to hide torch's own cost, few enough that activations stay small.
MOST = 256


class Batched(Replicas):
    """Real training, all ranks as rows of float32 matrices of shape (ranks, parameters). `digests`: of all that is moved, which costs.

    A row is to this class what a replica is to its parent, whose arithmetic it inherits. Sets torch to one thread, since the number
    of threads decides the bits.
    """

    def __init__(self, workload: EvenWorkload, scenario: Scenario, digests: bool = False) -> None:
        torch.set_num_threads(1)
        self.kind = "content" if digests else "off"
        shared = Matrices(workload, scenario)
        super().__init__([Row(shared, rank) for rank in range(scenario.ranks)])

    def digest(self, published: Any) -> str | None:
        """Digest of the bytes, if there are to be digests."""
        return super().digest(published) if self.kind == "content" else None


class Matrices:
    """Models, gradients and momenta of all ranks, and the gradients that are under way."""

    def __init__(self, workload: EvenWorkload, scenario: Scenario) -> None:
        self.learning_rate, self.momentum = scenario.training.learning_rate, scenario.training.momentum
        self._workload = workload
        self._gradients_of = Gradients(workload)
        shape = (scenario.ranks, self._gradients_of.size)
        self.models = self._gradients_of.initial.repeat(scenario.ranks, 1)
        self.gradients, self.snapshots = torch.zeros(shape), torch.zeros(shape)
        self.velocities = torch.zeros(shape if self.momentum else (scenario.ranks, 0))
        self.pending: dict[int, int] = {}  # rank -> iteration whose gradient nobody has needed yet

    def compute(self) -> None:
        """Compute all gradients under way, each at its rank's snapshot."""
        ranks = sorted(self.pending)
        for first in range(0, len(ranks), MOST):
            some = ranks[first : first + MOST]
            rows = torch.tensor(some)
            batches = [self._workload.batch(rank, self.pending[rank]) for rank in some]
            self.gradients[rows] = self._gradients_of(self.snapshots[rows], batches)
        self.pending.clear()


class Row:
    """One rank: the row of each matrix, as torch and numpy see the same memory. It has the methods of a replica that numerics use."""

    def __init__(self, shared: Matrices, rank: int) -> None:
        self._shared = shared
        self._rank = rank
        self._model, self._gradient, self._velocity = shared.models[rank], shared.gradients[rank], shared.velocities[rank]
        self._snapshot = shared.snapshots[rank].numpy()
        self._flats = {
            Value.MODEL: FlatRow(self._model.numpy(), None),
            Value.GRADIENT: FlatRow(self._gradient.numpy(), self._need),
        }

    def compute_gradient(self, iteration: int) -> None:
        """Remember model and batch; the arithmetic is done when a result is needed."""
        self._snapshot[:] = self._flats[Value.MODEL].row
        self._shared.pending[self._rank] = iteration

    def apply_update(self) -> None:
        """SGD with momentum, operation by operation as torch.optim.SGD does it."""
        self._need()
        step = self._gradient
        if self._shared.momentum:
            step = self._velocity.mul_(self._shared.momentum).add_(step)
        self._model.add_(step, alpha=-self._shared.learning_rate)

    def flat(self, value: Value) -> FlatRow:
        """The model or the gradient."""
        return self._flats[value]

    def _need(self) -> None:
        if self._rank in self._shared.pending:
            self._shared.compute()


class FlatRow:
    """A row, to be read and written; `need` makes it valid first."""

    def __init__(self, row: Array, need: Callable[[], None] | None) -> None:
        self.row = row
        self._need = need

    def read(self) -> Array:
        """A copy."""
        if self._need is not None:
            self._need()
        return self.row.copy()

    def write(self, values: Array) -> None:
        """Put values of the same shape into it."""
        if self._need is not None:
            self._need()
        self.row[:] = values


class Gradients:
    """Gradients of many models of one architecture, each on a batch of its own."""

    def __init__(self, workload: EvenWorkload) -> None:
        template = workload.model()
        parameters = dict(template.named_parameters())
        sizes = [parameter.numel() for parameter in parameters.values()]
        ends = np.cumsum(sizes).tolist()
        self.size: int = ends[-1]
        self.initial = torch.cat([parameter.detach().reshape(-1) for parameter in parameters.values()])
        self._workload = workload
        self._layout = {
            name: (slice(end - size, end), parameter.shape)
            for (name, parameter), size, end in zip(parameters.items(), sizes, ends, strict=True)
        }

        def loss(values: dict[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return workload.criterion(functional_call(template, values, (inputs,)), labels)

        self._function = vmap(grad(loss))

    def __call__(self, models: torch.Tensor, batches: Sequence[npt.NDArray[np.int64]]) -> torch.Tensor:
        """The gradient of each of `models`, shape (k, parameters), on its own batch; the same shape."""
        k = len(batches)
        inputs, labels = self._workload.examples(np.concatenate(batches))
        inputs, labels = inputs.view(k, -1, *inputs.shape[1:]), labels.view(k, -1)
        values = {name: models[:, part].view(k, *shape) for name, (part, shape) in self._layout.items()}
        found = self._function(values, inputs, labels)
        return torch.cat([found[name].flatten(1) for name in self._layout], dim=1)
