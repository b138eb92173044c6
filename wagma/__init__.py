"""wagma: wait-avoiding group model averaging, simulated and real, from one algorithm core.

`import wagma` is cheap: numpy, simpy, torch and mpi4py are imported when something that needs them is used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wagma.errors import (
    CollectiveTimeout,
    DeviceError,
    InputError,
    MissingDependencyError,
    ModelChanged,
    ModelMismatch,
    NotFinite,
    OutOfDeviceMemory,
    PeerFailed,
    ProtocolError,
    WagmaError,
)

if TYPE_CHECKING:
    from wagma.algorithms import register
    from wagma.api import simulate
    from wagma.frames import frame
    from wagma.logs import log_to_stderr
    from wagma.real.checkpoints.files import find_checkpoint
    from wagma.real.checkpoints.load import Checkpoint, load_checkpoint
    from wagma.real.checkpoints.save import save_checkpoint
    from wagma.real.collective import GroupAllreduce
    from wagma.real.launching.ranks import device, local_rank, rank, world_size
    from wagma.real.launching.sampler import ShardSampler
    from wagma.real.together import together
    from wagma.real.wrapper.distribute import distribute
    from wagma.real.wrapper.optimizer import DistributedOptimizer
    from wagma.results import Result
    from wagma.scenario import Scenario
    from wagma.scenario import load as load_scenario
    from wagma.sim.cluster import Cluster
    from wagma.studies.sweep import sweep
    from wagma.trace import Trace, load_trace
    from wagma.validate import validate

__version__ = "0.1.0"

_LAZY = {
    "Cluster": ("wagma.sim.cluster", "Cluster"),
    "Checkpoint": ("wagma.real.checkpoints.load", "Checkpoint"),
    "DistributedOptimizer": ("wagma.real.wrapper.optimizer", "DistributedOptimizer"),
    "GroupAllreduce": ("wagma.real.collective", "GroupAllreduce"),
    "Result": ("wagma.results", "Result"),
    "Scenario": ("wagma.scenario", "Scenario"),
    "ShardSampler": ("wagma.real.launching.sampler", "ShardSampler"),
    "Trace": ("wagma.trace", "Trace"),
    "device": ("wagma.real.launching.ranks", "device"),
    "distribute": ("wagma.real.wrapper.distribute", "distribute"),
    "find_checkpoint": ("wagma.real.checkpoints.files", "find_checkpoint"),
    "frame": ("wagma.frames", "frame"),
    "load_checkpoint": ("wagma.real.checkpoints.load", "load_checkpoint"),
    "load_scenario": ("wagma.scenario", "load"),
    "load_trace": ("wagma.trace", "load_trace"),
    "log_to_stderr": ("wagma.logs", "log_to_stderr"),
    "local_rank": ("wagma.real.launching.ranks", "local_rank"),
    "rank": ("wagma.real.launching.ranks", "rank"),
    "register": ("wagma.algorithms", "register"),
    "save_checkpoint": ("wagma.real.checkpoints.save", "save_checkpoint"),
    "simulate": ("wagma.api", "simulate"),
    "sweep": ("wagma.studies.sweep", "sweep"),
    "together": ("wagma.real.together", "together"),
    "validate": ("wagma.validate", "validate"),
    "world_size": ("wagma.real.launching.ranks", "world_size"),
}

__all__ = [
    "Checkpoint",
    "Cluster",
    "CollectiveTimeout",
    "DeviceError",
    "DistributedOptimizer",
    "GroupAllreduce",
    "InputError",
    "MissingDependencyError",
    "ModelChanged",
    "ModelMismatch",
    "NotFinite",
    "OutOfDeviceMemory",
    "PeerFailed",
    "ProtocolError",
    "Result",
    "Scenario",
    "ShardSampler",
    "Trace",
    "WagmaError",
    "__version__",
    "device",
    "distribute",
    "find_checkpoint",
    "frame",
    "load_checkpoint",
    "load_scenario",
    "load_trace",
    "local_rank",
    "log_to_stderr",
    "rank",
    "register",
    "save_checkpoint",
    "simulate",
    "sweep",
    "together",
    "validate",
    "world_size",
]


class _Package(ModuleType):
    """This package. `wagma.validate` is the function: without this, the import of the module of that name would put the module there."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "validate" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


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
