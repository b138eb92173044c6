"""Runs of any registered algorithm in both worlds, with a lateness that the test chooses; every model is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wagma.algorithms import specification
from wagma.core.effects import Value
from wagma.core.schedule import Schedule
from wagma.draws import uniform
from wagma.errors import InputError, MissingDependencyError
from wagma.scenario import Scenario, read
from wagma.sim.driver import simulate
from wagma.sim.numerics import Replicas
from wagma.testing.problems import Ledger, Problem
from wagma.trace import Trace

if TYPE_CHECKING:
    from wagma.real.local import LocalCommunicator

Array = npt.NDArray[Any]
#: [rank][iteration] -> ticks that the gradient takes.
Lateness = Sequence[Sequence[int]]

#: How long a tick is in both worlds: long enough for a thread to sleep through.
TICK_S = 1e-4
#: The time of a gradient that takes no tick: a simulated one has to take some.
LEAST_TICKS = 0.01


@dataclass(frozen=True)
class Case:
    """What a run is run with, in either world.

    group_size, sync_period: as in a scenario ("sqrt" and "never" included). settings: those that only this algorithm has. lateness: ticks
    that each rank's gradient takes in each iteration; None: `straggling`, by the seed. hop: ticks that a message takes in the
    simulator; a real one takes what it takes.
    """

    ranks: int = 4
    iterations: int = 24
    group_size: int | str = "sqrt"
    sync_period: int | str = 8
    merge_once: bool = False
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    lateness: Lateness | None = None
    hop: float = 0.1

    def scenario(self, algorithm: str, parameters: int, dtype: str) -> Scenario:
        """The scenario of the run. Raises InputError, naming key and value, for settings out of range."""
        lateness = straggling(self.ranks, self.iterations, self.seed) if self.lateness is None else self.lateness
        if [len(row) for row in lateness] != [self.iterations] * self.ranks:
            shape = f"{len(lateness)} rows of {sorted({len(row) for row in lateness})} numbers"
            raise InputError(f"lateness = {shape}: must be a row of {self.iterations} for each of {self.ranks} ranks")
        if worst := [ticks for row in lateness for ticks in row if not 0 <= ticks < math.inf]:
            raise InputError(f"lateness: {worst[0]} ticks: must be at least 0 and finite")
        table = {
            "name": "testing", "ranks": self.ranks, "iterations": self.iterations, "seed": self.seed,
            "model": {"parameters": parameters, "dtype": dtype},
            "work": {"per_rank": 1, "unit": "steps"},
            "compute": {"kind": "trace", "seconds": [[max(n, LEAST_TICKS) * TICK_S for n in row] for row in lateness]},
            "network": {"latency_ns": self.hop * TICK_S * 1e9},
            "algorithm": {"group_size": self.group_size, "sync_period": self.sync_period, "merge_once": self.merge_once},
            "algorithms": {specification(algorithm).name: dict(self.settings)},
        }  # fmt: skip
        return read(table, "testing")


@dataclass(frozen=True)
class Observed:
    """A run: its trace, and every model.

    models[rank, iteration] is the rank's model at the end of the iteration, updated[rank, iteration] the one right after its update (before
    whatever average follows it); shape (ranks, iterations, parameters).
    """

    trace: Trace
    problem: Problem
    models: Array
    updated: Array

    @property
    def schedule(self) -> Schedule:
        """The collectives of the run."""
        return self.trace.schedule


def straggling(ranks: int, iterations: int, seed: int, probability: float = 0.2, ticks: int = 30) -> list[list[int]]:
    """Lateness in which gradients take a tick, and with that probability, independently, so many ticks more."""
    draws = np.stack([uniform(seed, "testing.straggling", np.arange(ranks), t) for t in range(iterations)], axis=1)
    rows: list[list[int]] = (1 + ticks * (draws < probability)).tolist()
    return rows


def run_simulated(algorithm: str, case: Case, problem: Problem | None = None) -> Observed:
    """Run `algorithm` in virtual time; problem None: a `Ledger`.

    Raises InputError for a case that does not fit it, WagmaError, naming ranks and versions, if the ranks are stuck.
    """
    problem, initial = _problem(case, problem)
    scenario = case.scenario(algorithm, initial.size, str(initial.dtype))
    kept = _Kept(problem, case)
    trace = simulate(scenario, algorithm, kept)
    for rank in range(case.ranks):  # also what a partner has averaged with after the rank's own end
        kept.models[rank, -1] = kept.publish(rank, Value.MODEL)
    return Observed(trace, problem, kept.models, kept.updated)


def run_real(algorithm: str, case: Case, problem: Problem | None = None, timeout_s: float = 60.0) -> Observed:
    """Run `algorithm` for real: ranks are threads of this process, on the kernel and `wagma.distribute`; problem None: a `Ledger`.

    A rank sleeps until its gradient has taken the ticks of `case.lateness`, so that it is as late as the simulated one, give or take
    what the machine adds.

    Raises MissingDependencyError without torch or the native kernel, InputError for a case that does not fit, and what any rank raised;
    CollectiveTimeout after `timeout_s` seconds.
    """
    problem, initial = _problem(case, problem)
    scenario = case.scenario(algorithm, initial.size, str(initial.dtype))
    require_real()
    from wagma.real.local import run_local
    from wagma.real.seeing.recorder import assemble
    from wagma.testing.threads import Program

    program = Program(algorithm, scenario, problem, timeout_s)

    def run(comm: LocalCommunicator) -> Any:
        return program(comm)

    notes = run_local(case.ranks, run, timeout_s)
    trace = assemble(scenario, algorithm, specification(algorithm).value, notes)
    return Observed(trace, problem, program.models, program.updated)


def require_real() -> None:
    """Raise MissingDependencyError, naming it, if something is not installed that real ranks need: torch, the native kernel."""
    if find_spec("torch") is None:
        raise MissingDependencyError("run_real needs torch: pip install torch (docs/install.md)")
    from wagma.real.modules import native

    native()


def _problem(case: Case, problem: Problem | None) -> tuple[Problem, Array]:
    """The problem and its initial model. Raises InputError if that is no model."""
    if problem is None:
        problem = Ledger(case.ranks, case.iterations)
    initial = problem.initial()
    if initial.ndim != 1 or not initial.size or initial.dtype not in (np.float32, np.float64):
        what = f"{initial.dtype} of shape {initial.shape}"
        raise InputError(f"{type(problem).__name__}.initial() = {what}: must be float32 or float64 of shape (parameters,)")
    return problem, initial


class _Flat:
    """An array, read and written as a model is."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def read(self) -> Array:
        """A copy."""
        return self.array.copy()

    def write(self, values: Array) -> None:
        """Put values of the same shape into it."""
        self.array[:] = values


class _Rank:
    """What `wagma.sim.numerics.Replicas` asks of one rank's replica. The learning rate is in the gradient, as it is in a real run."""

    def __init__(self, problem: Problem, rank: int) -> None:
        self._problem, self._rank = problem, rank
        self.model = problem.initial()
        self.gradient = np.zeros_like(self.model)
        self._flats = {Value.MODEL: _Flat(self.model), Value.GRADIENT: _Flat(self.gradient)}

    def compute_gradient(self, iteration: int) -> None:
        """At the model as it is when the gradient begins."""
        self.gradient[:] = self._problem.learning_rate * self._problem.gradient(self._rank, iteration, self.model)

    def apply_update(self) -> None:
        """Plain SGD."""
        self.model -= self.gradient

    def flat(self, value: Value) -> _Flat:
        """The model or the gradient."""
        return self._flats[value]


class _Kept(Replicas):
    """Training whose models are kept: an iteration's last one is the one that the next begins with."""

    def __init__(self, problem: Problem, case: Case) -> None:
        ranks = [_Rank(problem, rank) for rank in range(case.ranks)]
        super().__init__(ranks)
        self._ranks = ranks
        self.models = np.full((case.ranks, case.iterations, ranks[0].model.size), np.nan)
        self.updated = self.models.copy()

    def compute_gradient(self, rank: int, iteration: int) -> float | None:
        """Keep the model of before."""
        if iteration:
            self.models[rank, iteration - 1] = self._ranks[rank].model
        return super().compute_gradient(rank, iteration)

    def apply_update(self, rank: int, iteration: int) -> None:
        """Keep the model of after."""
        super().apply_update(rank, iteration)
        self.updated[rank, iteration] = self._ranks[rank].model
