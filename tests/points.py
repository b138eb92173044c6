"""Ranks whose model is a point and whose loss is its squared distance to a target of their own: training that fits on paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from wagma.algorithms import ALGORITHMS, Collectives, register
from wagma.core.effects import Algorithm, RankView, Value
from wagma.scenario import read
from wagma.sim.driver import simulate
from wagma.sim.numerics import Replicas
from wagma.trace import Trace

Array = npt.NDArray[Any]
FREE = {"latency_ns": 0.0}


class Values:
    """An array as a workload's flat view."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def read(self) -> Array:
        return self.array.copy()

    def write(self, values: Array) -> None:
        assert values.dtype == self.array.dtype
        self.array[:] = values


class Point:
    """One rank: gradient `model - target`, update `model -= rate * gradient`; `moved` is the sum of all updates, in float64."""

    def __init__(self, model: Sequence[float], target: Sequence[float], rate: float, dtype: str) -> None:
        self.flats = {Value.MODEL: Values(np.array(model, dtype)), Value.GRADIENT: Values(np.zeros(len(model), dtype))}
        self.target = np.array(target, dtype)
        self.rate = rate
        self.moved = np.zeros(len(model), np.float64)

    def flat(self, value: Value) -> Values:
        return self.flats[value]

    def compute_gradient(self, iteration: int) -> None:
        self.flats[Value.GRADIENT].array[:] = self.flats[Value.MODEL].array - self.target

    def apply_update(self) -> None:
        model = self.flats[Value.MODEL].array
        before = model.astype(np.float64)
        model -= model.dtype.type(self.rate) * self.flats[Value.GRADIENT].array
        self.moved += model.astype(np.float64) - before


class Swarm(Replicas):
    """All ranks as points; `weights`: the last factor by which each rank scaled its model."""

    def __init__(self, points: Sequence[Point]) -> None:
        super().__init__(cast(Any, points))
        self.points = points
        self.weights = np.ones(len(points))

    def scale(self, rank: int, factor: float) -> None:
        super().scale(rank, factor)
        self.weights[rank] = factor

    @property
    def models(self) -> Array:
        """Shape (ranks, coordinates), float64."""
        return np.array([point.flats[Value.MODEL].array for point in self.points], np.float64)

    @property
    def moved(self) -> Array:
        """The sum of all updates of all ranks, shape (coordinates,)."""
        return np.sum([point.moved for point in self.points], axis=0)


def scenario_table(ranks: int, iterations: int, **changes: Any) -> dict[str, Any]:
    """Everybody computes for 1 us, and messages are free unless `changes` has a network."""
    return {
        "name": "points",
        "ranks": ranks,
        "iterations": iterations,
        "model": {"parameters": 100},
        "work": {"per_rank": 1, "unit": "steps"},
        "compute": {"kind": "constant", "seconds": 1e-6},
        "network": FREE,
        **changes,
    }


def swarm(
    algorithm: str, models: Sequence[Sequence[float]], iterations: int, targets: Sequence[Sequence[float]] | None = None,
    rate: float = 0.0, dtype: str = "float64", **changes: Any,
) -> tuple[Swarm, Trace]:  # fmt: skip
    """Simulate points that start at `models` (and stay where they are, but for averaging, at rate 0)."""
    points = [
        Point(model, target, rate, dtype)
        for model, target in zip(models, targets if targets is not None else models, strict=True)
    ]
    numerics = Swarm(points)
    trace = simulate(read(scenario_table(len(points), iterations, **changes), "points"), algorithm, numerics)
    return numerics, trace


@contextmanager
def registered(
    name: str, run: Callable[[RankView], Algorithm], collectives: Collectives = Collectives.NEIGHBOURS, **options: Any
) -> Iterator[None]:
    """An algorithm of a test's own, while it lasts."""
    register(name, collectives, **options)(run)
    try:
        yield
    finally:
        del ALGORITHMS[name]
