"""Models and data that both worlds train: the same network, shards, batches and arithmetic, so that both compute the same bits.

Needs the extra `wagma[torch]` (torch and scikit-learn); importing this package does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from wagma.algorithms import Collectives, specification
from wagma.core.averaging import mean
from wagma.errors import MissingDependencyError
from wagma.scenario import Scenario

if TYPE_CHECKING:
    from wagma.workloads.replica import Replica, Workload

__all__ = ["consolidated_accuracy", "has_common_model", "replicas", "require", "workload"]


def require() -> None:
    """Raise MissingDependencyError if torch or scikit-learn is missing."""
    missing = [name for name, module in (("torch", "torch"), ("scikit-learn", "sklearn")) if find_spec(module) is None]
    if missing:
        raise MissingDependencyError(
            f"training needs {' and '.join(missing)}: pip install torch scikit-learn (docs/install.md; to simulate the timing alone: "
            "--set training.workload=none)"
        )


def workload(scenario: Scenario) -> Workload:
    """The scenario's data and model. Raises as `replicas` does."""
    require()
    from wagma.workloads.digits import Digits

    return Digits(scenario)


def replicas(scenario: Scenario, ranks: range | None = None) -> list[Replica]:
    """One replica of the scenario's workload for each of `ranks` (default: all). Sets torch to one thread: bits depend on it.

    Raises MissingDependencyError without torch or scikit-learn, InputError if the scenario does not fit the workload.
    """
    data = workload(scenario)
    from wagma.workloads.replica import Replica

    return [Replica(data, scenario, rank) for rank in (range(scenario.ranks) if ranks is None else ranks)]


def has_common_model(algorithm: str, ranks: int) -> bool:
    """Whether the mean of the ranks' models is the model that the algorithm trains."""
    return ranks == 1 or specification(algorithm).collectives is not Collectives.NONE


def consolidated_accuracy(scenario: Scenario, algorithm: str, models: Sequence[npt.NDArray[Any]]) -> float | None:
    """Accuracy, from 0 to 1 on the held-out data, of the mean of all ranks' flat models.

    None for ranks that never communicate: they have no model in common, and the mean of theirs says nothing of any of them.
    """
    if not has_common_model(algorithm, len(models)):
        return None
    return replicas(scenario, range(1))[0].accuracy(mean(models))
