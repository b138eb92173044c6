"""What simulated messages contain.

`Symbols`: a model is the digest of what it was made from. It costs a hash per operation, needs neither torch nor data, and shows a
stale, torn or wrongly merged model as a different symbol, so that the checkers judge timing-only runs too. `Nothing` is
for speed. `Replicas` trains for real, in virtual time: the same code on the same shards as a real rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from wagma.core.averaging import add, merge, pair_average, weighted, weighted_sum, with_zeros
from wagma.core.averaging import mean as mean_of
from wagma.core.digest import digest
from wagma.core.effects import Value
from wagma.core.symbols import INITIAL, NULL, added, merged, paired, reduced, scaled, symbol
from wagma.core.symbols import weighted_sum as weighted_symbols
from wagma.core.trees import tree_sum

if TYPE_CHECKING:
    import numpy.typing as npt


class Numerics(Protocol):
    """A rank's value (its model or gradient) and the arithmetic on what ranks publish. Published values are immutable."""

    kind: str

    def compute_gradient(self, rank: int, iteration: int) -> float | None:
        """Gradient of the rank's own batch; how much work that is, None: as the scenario says."""

    def apply_update(self, rank: int, iteration: int) -> None:
        """W' = W + U(gradient)."""

    def publish(self, rank: int, value: Value) -> Any:
        """A snapshot of the rank's value."""

    def replace(self, rank: int, value: Value, mean: Any) -> None:
        """The rank's value becomes the mean."""

    def average(self, rank: int, total: Any, own_weight: float, divisor: float, value: Value) -> None:
        """The rank's value becomes (total + own_weight * own) / divisor; `total` None is nothing."""

    def add(self, rank: int, value: Value, taken: Any) -> None:
        """The rank's value becomes taken + own: what it published before and took back."""

    def scale(self, rank: int, factor: float) -> None:
        """The rank's model becomes factor * own."""

    def average_pair(self, rank: int, theirs: Any, sent: Any) -> None:
        """The rank's model becomes own + (theirs - sent) / 2: `sent` is what the other side had of this one."""

    def reduce(self, contributions: Sequence[Any], mean: bool) -> Any:
        """Sum along the association tree; the mean at a sync. A contribution None is null: it adds zeros."""

    def weighted_sum(self, contributions: Sequence[Any], weights: Sequence[float]) -> Any:
        """Sum of weight * contribution in the order given; None of nothing."""

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

    def average(self, rank: int, total: None, own_weight: float, divisor: float, value: Value) -> None:
        """Nothing to average."""

    def add(self, rank: int, value: Value, taken: None) -> None:
        """Nothing to add."""

    def scale(self, rank: int, factor: float) -> None:
        """Nothing to scale."""

    def average_pair(self, rank: int, theirs: None, sent: None) -> None:
        """Nothing to average."""

    def reduce(self, contributions: Sequence[None], mean: bool) -> None:
        """Nothing to add up."""

    def weighted_sum(self, contributions: Sequence[None], weights: Sequence[float]) -> None:
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

    def average(self, rank: int, total: str | None, own_weight: float, divisor: float, value: Value) -> None:
        """A merge depends on the sum, the weights and, if it has weight, the own value."""
        own = self._values[value]
        own[rank] = merged(total, own[rank], own_weight, divisor)

    def add(self, rank: int, value: Value, taken: str) -> None:
        """A sum depends on both parts."""
        own = self._values[value]
        own[rank] = added(taken, own[rank])

    def scale(self, rank: int, factor: float) -> None:
        """A scaled model depends on the model and the factor."""
        model = self._values[Value.MODEL]
        model[rank] = scaled(model[rank], factor)

    def average_pair(self, rank: int, theirs: str, sent: str) -> None:
        """An average depends on all three models."""
        model = self._values[Value.MODEL]
        model[rank] = paired(model[rank], theirs, sent)

    def reduce(self, contributions: Sequence[str | None], mean: bool) -> str:
        """A sum depends on its contributions in order."""
        return reduced(contributions, mean)

    def weighted_sum(self, contributions: Sequence[str], weights: Sequence[float]) -> str | None:
        """A sum depends on its contributions in order, and on their weights."""
        return weighted_symbols(contributions, weights)

    def digest(self, published: str | None) -> str:
        """The symbol itself."""
        return NULL if published is None else published


class Flat(Protocol):
    """A model or a gradient as one array."""

    def read(self) -> npt.NDArray[Any]:
        """A copy."""

    def write(self, values: npt.NDArray[Any]) -> None:
        """Put values of the same shape into it."""


class Trained(Protocol):
    """One rank's model and gradient: a workload's replica, a row of a matrix of all ranks', or what a test trains."""

    def compute_gradient(self, iteration: int) -> float | None:
        """Gradient of the rank's own batch; how much work that is, None: as the scenario says."""

    def apply_update(self) -> None:
        """W' = W + U(gradient)."""

    def flat(self, value: Value) -> Flat:
        """The model or the gradient."""


class Replicas:
    """Real training: one replica of the workload's model per rank."""

    kind = "content"

    def __init__(self, replicas: Sequence[Trained]) -> None:
        self.replicas = replicas

    def compute_gradient(self, rank: int, iteration: int) -> float | None:
        """Forward and backward on the rank's batch."""
        return self.replicas[rank].compute_gradient(iteration)

    def apply_update(self, rank: int, iteration: int) -> None:
        """One step of the local optimizer."""
        self.replicas[rank].apply_update()

    def publish(self, rank: int, value: Value) -> Any:
        """A copy of the flat model or gradient."""
        return self.replicas[rank].flat(value).read()

    def replace(self, rank: int, value: Value, mean: Any) -> None:
        """Write the mean into the model or gradient."""
        self.replicas[rank].flat(value).write(mean)

    def average(self, rank: int, total: Any, own_weight: float, divisor: float, value: Value) -> None:
        """Averaging rule of the core, on the flat model or gradient."""
        flat = self.replicas[rank].flat(value)
        flat.write(merge(total, flat.read(), own_weight, divisor))

    def add(self, rank: int, value: Value, taken: Any) -> None:
        """In the accumulation type, on the flat gradient."""
        flat = self.replicas[rank].flat(value)
        flat.write(add(taken, flat.read()))

    def scale(self, rank: int, factor: float) -> None:
        """On the flat model."""
        if factor != 1:
            flat = self.replicas[rank].flat(Value.MODEL)
            flat.write(weighted(flat.read(), factor))

    def average_pair(self, rank: int, theirs: Any, sent: Any) -> None:
        """Averaging rule of the core, on the flat model."""
        flat = self.replicas[rank].flat(Value.MODEL)
        flat.write(pair_average(flat.read(), theirs, sent))

    def reduce(self, contributions: Sequence[Any], mean: bool) -> Any:
        """Sum or mean along the association tree."""
        return mean_of(contributions) if mean else tree_sum(with_zeros(contributions))

    def weighted_sum(self, contributions: Sequence[Any], weights: Sequence[float]) -> Any:
        """In the accumulation type, in the order given."""
        return weighted_sum(contributions, weights)

    def digest(self, published: Any) -> str | None:
        """Digest of the bytes."""
        return NULL if published is None else digest(published)
