"""What simulated messages contain.

`Symbols`: a model is the digest of what it was made from. It costs a hash per operation, needs neither torch nor data, and shows a
stale, torn or wrongly merged model as a different symbol, so that the checkers judge timing-only runs too. `Nothing` is
for speed. `Replicas` trains for real, in virtual time: the same code on the same shards as a real rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from wagma.core.averaging import mean as mean_of
from wagma.core.averaging import merge
from wagma.core.digest import digest
from wagma.core.effects import Value
from wagma.core.symbols import INITIAL, merged, reduced, symbol
from wagma.core.trees import tree_sum

if TYPE_CHECKING:
    from wagma.workloads.replica import Replica


class Numerics(Protocol):
    """A rank's value (its model or gradient) and the arithmetic on what ranks publish. Published values are immutable."""

    kind: str

    def compute_gradient(self, rank: int, iteration: int) -> None:
        """Gradient of the rank's own batch."""

    def apply_update(self, rank: int, iteration: int) -> None:
        """W' = W + U(gradient)."""

    def publish(self, rank: int, value: Value) -> Any:
        """A snapshot of the rank's value."""

    def replace(self, rank: int, value: Value, mean: Any) -> None:
        """The rank's value becomes the mean."""

    def average(self, rank: int, total: Any, own_weight: int, divisor: int) -> None:
        """The rank's model becomes (total + own_weight * own) / divisor."""

    def reduce(self, contributions: Sequence[Any], mean: bool) -> Any:
        """Sum along the association tree; the mean at a sync."""

    def digest(self, published: Any) -> str | None:
        """What a trace says of a snapshot."""


class Nothing:
    """No contents: the run is timed only."""

    kind = "off"

    def compute_gradient(self, rank: int, iteration: int) -> None:
        """Nothing to compute."""

    def apply_update(self, rank: int, iteration: int) -> None:
        """Nothing to update."""

    def publish(self, rank: int, value: Value) -> None:
        """Nothing to publish."""

    def replace(self, rank: int, value: Value, mean: None) -> None:
        """Nothing to replace."""

    def average(self, rank: int, total: None, own_weight: int, divisor: int) -> None:
        """Nothing to average."""

    def reduce(self, contributions: Sequence[None], mean: bool) -> None:
        """Nothing to add up."""

    def digest(self, published: None) -> None:
        """Nothing to tell."""


class Symbols:
    """Models and gradients as digests of their making."""

    kind = "symbolic"

    def __init__(self, ranks: int) -> None:
        self._values = {Value.MODEL: [INITIAL] * ranks, Value.GRADIENT: ["none"] * ranks}

    def compute_gradient(self, rank: int, iteration: int) -> None:
        """A gradient depends on the model, the rank's data and the iteration."""
        self._values[Value.GRADIENT][rank] = symbol("gradient", self._values[Value.MODEL][rank], rank, iteration)

    def apply_update(self, rank: int, iteration: int) -> None:
        """A model depends on the model before and the gradient."""
        model = self._values[Value.MODEL]
        model[rank] = symbol("update", model[rank], self._values[Value.GRADIENT][rank])

    def publish(self, rank: int, value: Value) -> str:
        """The symbol itself."""
        return self._values[value][rank]

    def replace(self, rank: int, value: Value, mean: str) -> None:
        """Take the mean's symbol."""
        self._values[value][rank] = mean

    def average(self, rank: int, total: str | None, own_weight: int, divisor: int) -> None:
        """A merge depends on the sum, the weights and, if it has weight, the own model."""
        model = self._values[Value.MODEL]
        if total is not None:
            model[rank] = merged(total, model[rank], own_weight, divisor)

    def reduce(self, contributions: Sequence[str], mean: bool) -> str:
        """A sum depends on its contributions in order."""
        return reduced(contributions, mean)

    def digest(self, published: str) -> str:
        """The symbol itself."""
        return published


class Replicas:
    """Real training: one replica of the workload's model per rank."""

    kind = "content"

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas

    def compute_gradient(self, rank: int, iteration: int) -> None:
        """Forward and backward on the rank's batch."""
        self.replicas[rank].compute_gradient(iteration)

    def apply_update(self, rank: int, iteration: int) -> None:
        """One step of the local optimizer."""
        self.replicas[rank].apply_update()

    def publish(self, rank: int, value: Value) -> Any:
        """A copy of the flat model or gradient."""
        return self.replicas[rank].flat(value).read()

    def replace(self, rank: int, value: Value, mean: Any) -> None:
        """Write the mean into the model or gradient."""
        self.replicas[rank].flat(value).write(mean)

    def average(self, rank: int, total: Any, own_weight: int, divisor: int) -> None:
        """Averaging rule of the core, on the flat model."""
        flat = self.replicas[rank].flat(Value.MODEL)
        flat.write(merge(total, flat.read(), own_weight, divisor))

    def reduce(self, contributions: Sequence[Any], mean: bool) -> Any:
        """Sum or mean along the association tree."""
        return mean_of(contributions) if mean else tree_sum(contributions)

    def digest(self, published: Any) -> str:
        """Digest of the bytes."""
        return digest(published)
