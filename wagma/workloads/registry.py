"""Which workloads there are: where each is made, what it needs, what it is judged by. Importing this needs nothing of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from wagma.errors import MissingDependencyError
from wagma.scenario import Scenario
from wagma.scores import ACCURACY, BITS_PER_BYTE, EPISODE_RETURN, Score

if TYPE_CHECKING:
    from wagma.workloads.replica import Workload

_TORCH = {"torch": "torch"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A workload: `make` is "module:callable", called with a scenario. needs: module -> what pip calls it."""

    make: str
    score: Score
    unit: str
    needs: Mapping[str, str] = field(default_factory=lambda: _TORCH)


_DIGITS = Entry("wagma.workloads.digits:Digits", ACCURACY, "images", _TORCH | {"sklearn": "scikit-learn"})

#: Name, as in `training.workload` -> entry. `wagma.scenario.WORKLOADS` has the same names (and "none").
REGISTRY: dict[str, Entry] = {
    "digits": _DIGITS,
    "digits_mlp": _DIGITS,
    "text": Entry("wagma.workloads.text:Text", BITS_PER_BYTE, "tokens"),
    "rl": Entry("wagma.workloads.rl:Rl", EPISODE_RETURN, "steps", _TORCH | {"gymnasium": "gymnasium"}),
}


def score_of(scenario: Scenario) -> Score:
    """What the scenario's workload, which is not "none", is judged by."""
    return REGISTRY[scenario.training.workload].score


def require(name: str) -> None:
    """Raise MissingDependencyError, naming all that the workload needs and is not installed."""
    entry = REGISTRY[name]
    missing = [package for module, package in entry.needs.items() if find_spec(module) is None]
    if missing:
        raise MissingDependencyError(
            f"training the workload {name} needs {' and '.join(missing)}: pip install {' '.join(entry.needs.values())} "
            "(docs/install.md; to simulate the timing alone: --set training.workload=none)"
        )


def make(scenario: Scenario) -> Workload:
    """The scenario's data and model. Raises MissingDependencyError, and InputError if the scenario does not fit the workload."""
    require(scenario.training.workload)
    module, _, name = REGISTRY[scenario.training.workload].make.partition(":")
    workload: Workload = getattr(import_module(module), name)(scenario)
    return workload
