"""Models and data that both worlds train: the same network, data, batches and arithmetic, so that both compute the same bits.

`wagma.workloads.registry` lists them, with what each needs (the extra `wagma[torch]`, for `rl` also `wagma[rl]`); importing this needs none
of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from wagma.algorithms import Collectives, specification
from wagma.core.averaging import mean
from wagma.scenario import Scenario
from wagma.workloads.provenance import environment
from wagma.workloads.registry import REGISTRY, make, require, score_of

if TYPE_CHECKING:
    from wagma.workloads.replica import Replica, Workload

__all__ = ["REGISTRY", "consolidated", "environment", "has_common_model", "replicas", "require", "score_of", "workload"]


def workload(scenario: Scenario) -> Workload:
    """The scenario's data and model. Raises as `replicas` does."""
    return make(scenario)


def replicas(scenario: Scenario, ranks: range | None = None, device: str = "cpu") -> list[Replica]:
    """One replica of the scenario's workload for each of `ranks` (default: all). Sets torch to one thread: bits depend on it.

    device: where torch has models and data. Initial values are the same everywhere.
    Raises MissingDependencyError if something that the workload needs is not installed, InputError if the scenario does not fit it.
    """
    data = workload(scenario)
    from wagma.workloads.replica import Replica

    return [Replica(data, scenario, rank, device) for rank in (range(scenario.ranks) if ranks is None else ranks)]


def has_common_model(algorithm: str, ranks: int) -> bool:
    """Whether the mean of the ranks' models is the model that the algorithm trains."""
    return ranks == 1 or specification(algorithm).collectives is not Collectives.NONE


def consolidated(algorithm: str, models: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    """The mean of all ranks' flat models.

    None for ranks that never communicate: they have no model in common, and the mean of theirs says nothing of any of them.
    """
    return mean(models) if has_common_model(algorithm, len(models)) else None
