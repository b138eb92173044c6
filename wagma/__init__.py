"""wagma: wait-avoiding group model averaging, simulated and real, from one algorithm core.

`import wagma` is cheap: simpy, torch and mpi4py are imported when something that needs them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wagma.errors import (
    CollectiveTimeout,
    InputError,
    MissingDependencyError,
    PeerFailed,
    ProtocolError,
    WagmaError,
)

# Not lazy: the first import of the module of this name would put the module in the function's place.
from wagma.validate import validate

if TYPE_CHECKING:
    from wagma.algorithms import register
    from wagma.api import simulate
    from wagma.frames import frame
    from wagma.real.collective import GroupAllreduce
    from wagma.real.optimizer import DistributedOptimizer, distribute
    from wagma.results import Result
    from wagma.scenario import Scenario
    from wagma.scenario import load as load_scenario
    from wagma.sim.cluster import Cluster
    from wagma.studies.sweep import sweep
    from wagma.trace import Trace, load_trace

__version__ = "0.1.0"

_LAZY = {
    "Cluster": ("wagma.sim.cluster", "Cluster"),
    "DistributedOptimizer": ("wagma.real.optimizer", "DistributedOptimizer"),
    "GroupAllreduce": ("wagma.real.collective", "GroupAllreduce"),
    "Result": ("wagma.results", "Result"),
    "Scenario": ("wagma.scenario", "Scenario"),
    "Trace": ("wagma.trace", "Trace"),
    "distribute": ("wagma.real.optimizer", "distribute"),
    "frame": ("wagma.frames", "frame"),
    "load_scenario": ("wagma.scenario", "load"),
    "load_trace": ("wagma.trace", "load_trace"),
    "register": ("wagma.algorithms", "register"),
    "simulate": ("wagma.api", "simulate"),
    "sweep": ("wagma.studies.sweep", "sweep"),
}

__all__ = [
    "Cluster",
    "CollectiveTimeout",
    "DistributedOptimizer",
    "GroupAllreduce",
    "InputError",
    "MissingDependencyError",
    "PeerFailed",
    "ProtocolError",
    "Result",
    "Scenario",
    "Trace",
    "WagmaError",
    "__version__",
    "distribute",
    "frame",
    "load_scenario",
    "load_trace",
    "register",
    "simulate",
    "sweep",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'wagma' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    try:
        value = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "wagma":
            raise
        raise MissingDependencyError(f"wagma.{name} needs {error.name}, which is not installed (docs/install.md)") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
