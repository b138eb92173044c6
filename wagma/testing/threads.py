"""One rank of `run_real`: a thread that trains a problem through `wagma.distribute`. Needs torch and the native kernel."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wagma.algorithms import specification
from wagma.real.local import LocalCommunicator
from wagma.real.seeing.recorder import Notes
from wagma.real.wrapper.distribute import distribute
from wagma.scenario import Scenario
from wagma.testing.problems import Problem
from wagma.workloads.optimizers import SGD

Array = npt.NDArray[Any]


class Program:
    """Called by every rank with its communicator. Each one writes the rows of `models` and `updated` that are its own, and no others."""

    def __init__(self, algorithm: str, scenario: Scenario, problem: Problem, timeout_s: float) -> None:
        self._algorithm, self._scenario, self._problem, self._timeout_s = algorithm, scenario, problem, timeout_s
        self.models = np.full((scenario.ranks, scenario.iterations, scenario.parameters), np.nan)
        self.updated = self.models.copy()

    def __call__(self, comm: LocalCommunicator) -> Notes:
        """The whole run of one rank; what it recorded."""
        scenario, problem, rank = self._scenario, self._problem, comm.rank
        settings = scenario.settings_of(self._algorithm)
        own = {key: getattr(settings, key) for key in specification(self._algorithm).keys}
        model = _Vector(problem.initial())
        inner = _Watched(model, self.updated[rank])
        optimizer = distribute(
            inner, model, self._algorithm, settings.group_size, settings.sync_period, comm=comm, merge_once=settings.merge_once,
            settings=own, seed=scenario.seed, record=True, timeout_s=self._timeout_s, watchdog_s=0.0,
        )  # fmt: skip
        measured = scenario.compute.measured
        assert measured is not None  # a case gives every time
        comm.allgather(None, self._timeout_s)  # whoever is first here does not begin before the others
        with optimizer:
            optimizer.recorder.restart_clock()
            for t in range(scenario.iterations):
                began_ns = time.monotonic_ns()
                gradient = problem.learning_rate * problem.gradient(rank, t, model.numpy().copy())
                model.weight.grad = torch.from_numpy(gradient.astype(model.numpy().dtype, copy=False))
                inner.iteration = t
                left = began_ns * 1e-9 + float(measured[rank, t]) - time.monotonic()
                if left > 0:
                    time.sleep(left)
                optimizer.step()
                self.models[rank, t] = model.numpy()
        self.models[rank, -1] = model.numpy()  # after close: a partner may have averaged with this rank after its own end
        return optimizer.notes()


class _Vector(torch.nn.Module):
    """A model that is one array."""

    def __init__(self, initial: Array) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(initial))

    def numpy(self) -> Array:
        """The parameters' own memory."""
        array: Array = self.weight.detach().numpy()
        return array


class _Watched(SGD):
    """Plain SGD that keeps the model after each update. By exactly 1 the gradient, which the learning rate is in, is not rounded again."""

    def __init__(self, model: _Vector, updated: Array) -> None:
        super().__init__(model.parameters(), lr=1.0)
        self._vector, self._updated = model, updated
        self.iteration = 0

    def step(self, closure: Any = None) -> Any:
        """Update, and keep."""
        done = super().step(closure)
        self._updated[self.iteration] = self._vector.numpy()
        return done
