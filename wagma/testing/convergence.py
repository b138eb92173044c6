"""How far ranks part between two syncs, against the bounds of docs/convergence.md, and how fast gradients shrink with the horizon.

The bounds are wagma's own, proved on that page; W's lemmas 4.2 to 4.5 bound the same distances by learning rate, sync period and a gradient
bound M. Distances are in units of learning_rate * M, the length of the longest update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wagma.core.schedule import NEVER, Schedule
from wagma.errors import InputError
from wagma.testing.assertions import fail_if
from wagma.testing.problems import Ledger, LogCosh, Problem, TugOfWar
from wagma.testing.runs import Case, Observed, run_simulated

Array = npt.NDArray[Any]
#: Models are sums of thousands of rounded float64 numbers; bounds are reached exactly.
ROUNDING = 1e-9


class BoundedGradients(Problem, Protocol):
    """A problem none of whose gradients is longer than `gradient_bound`."""

    @property
    def gradient_bound(self) -> float:
        """M."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How many updates, weighted, a model can be away from the last sync: `model` at the end of an iteration, `updated` after an update."""

    model: float
    updated: float

    @classmethod
    def of(cls, schedule: Schedule, sync_period: int | None = None, merge_once: bool = False) -> Reach:
        """That of a schedule, or of one with another sync period. Raises InputError where no bound is proved."""
        period = schedule.sync_period if sync_period is None else sync_period
        if period == NEVER or schedule.accumulate or merge_once:
            given = f"sync_period = {period or 'never'}, accumulate = {schedule.accumulate}, merge_once = {merge_once}"
            raise InputError(f"{given}: bounds are proved with syncs, for averages of models, without merge_once")
        versions = period - 1
        groups = -(-schedule.world_size // schedule.group_size)
        smallest, largest = schedule.world_size // groups, -(-schedule.world_size // groups)
        extra = 1 / smallest if schedule.grouped and largest > 1 else 0.0
        return cls(versions * (1 + extra), versions * (1 + extra) + 1)


@dataclass(frozen=True, slots=True)
class Distances:
    """The largest distances of a run, or their bounds, in units of learning_rate * M.

    model, updated: of a rank's model from that after the last sync, at the end of an iteration and after an update. mean: of
    either from the mean over all ranks in the same iteration. rms: the root of the mean over ranks of that squared.
    """

    model: float
    updated: float
    mean: float
    rms: float

    @classmethod
    def bounds(cls, ranks: int, reach: Reach) -> Distances:
        """What no run exceeds."""
        return cls(reach.model, reach.updated, 2 * (1 - 1 / ranks) * reach.updated, reach.updated)


def distances(run: Observed, sync_period: int | None = None) -> Distances:
    """The largest ones of a run of a problem with a `gradient_bound`. sync_period: what to measure from; None: the run's own."""
    at_end, after_update = _from_sync(run, sync_period)
    deviations = np.stack([_from_mean(run.models), _from_mean(run.updated)]) / _unit(run)
    rms = np.sqrt((deviations**2).mean(axis=1))
    return Distances(float(at_end.max()), float(after_update.max()), float(deviations.max()), float(rms.max()))


def assert_distances(run: Observed, sync_period: int | None = None) -> None:
    """Raise AssertionError, naming rank and iteration, unless a run keeps the bounds of its schedule, or of another sync period.

    The problem must have a `gradient_bound`. Raises InputError where no bound is proved (no syncs, gradients, merge_once).
    """
    merge_once = run.trace.scenario.settings_of(run.trace.header.algorithm).merge_once
    bounds = Distances.bounds(len(run.models), Reach.of(run.schedule, sync_period, merge_once))
    fail_if(f"{run.trace.source}: distances in units of learning_rate * M", _too_far(run, sync_period, bounds))


def _too_far(run: Observed, sync_period: int | None, bounds: Distances) -> Iterator[str]:
    at_end, after_update = _from_sync(run, sync_period)
    unit = _unit(run)
    for what, found, bound in (
        ("model from the last sync's", at_end, bounds.model),
        ("updated model from the last sync's", after_update, bounds.updated),
        ("model from the mean of all", _from_mean(run.models) / unit, bounds.mean),
        ("updated model from the mean of all", _from_mean(run.updated) / unit, bounds.mean),
    ):
        for rank, iteration in np.argwhere(~(found <= bound * (1 + ROUNDING) + ROUNDING)):
            yield f"rank {rank}, iteration {iteration}: {what} {found[rank, iteration]:.6g}, expected at most {bound:.6g}"
    for what, models in (("models", run.models), ("updated models", run.updated)):
        rms = np.sqrt((_from_mean(models) ** 2).mean(axis=0)) / unit
        for (iteration,) in np.argwhere(~(rms <= bounds.rms * (1 + ROUNDING) + ROUNDING)):
            yield f"iteration {iteration}: {what} from their mean, rms {rms[iteration]:.6g}, expected at most {bounds.rms:.6g}"


def assert_mean_square(runs: Sequence[Observed], sync_period: int | None = None) -> None:
    """Raise AssertionError, naming the iteration, if E of the mean over ranks of |updated model - mean of all|^2 is beyond its bound.

    E is the mean over `runs`: the same lateness, other draws of a problem with a `gradient_rms`, which may be far below what a single
    gradient can be. Raises InputError where no bound is proved.
    """
    run = runs[0]
    rms = getattr(run.problem, "gradient_rms", None)
    if rms is None:
        raise InputError(f"problem = {type(run.problem).__name__}: must have a gradient_rms, such as LogCosh or TugOfWar")
    merge_once = run.trace.scenario.settings_of(run.trace.header.algorithm).merge_once
    bound = Reach.of(run.schedule, sync_period, merge_once).updated ** 2
    unit = float(run.problem.learning_rate * rms)
    squares = np.mean([(_from_mean(one.updated) ** 2).mean(axis=0) for one in runs], axis=0) / unit**2
    lines = (f"iteration {t}: {squares[t]:.6g}, expected at most {bound:.6g}" for t in np.flatnonzero(~(squares <= bound)))
    fail_if(f"{run.trace.source}: mean squared distances of {len(runs)} runs in units of (learning_rate * M)^2", lines)


def _unit(run: Observed) -> float:
    bound = getattr(run.problem, "gradient_bound", None)
    if bound is None:
        raise InputError(f"problem = {type(run.problem).__name__}: must have a gradient_bound, such as LogCosh or TugOfWar")
    return float(run.problem.learning_rate * bound)


def _from_sync(run: Observed, sync_period: int | None) -> tuple[Array, Array]:
    """Distances of (models, updated models) from the mean of all models at the end of the last sync before; shape (ranks, iterations)."""
    ranks, iterations, _ = run.models.shape
    schedule = run.schedule if sync_period is None else replace(run.schedule, sync_period=sync_period)
    at_end, after_update = np.zeros((ranks, iterations)), np.zeros((ranks, iterations))
    origin = run.problem.initial()
    for t in range(iterations):
        after_update[:, t] = np.linalg.norm(run.updated[:, t] - origin, axis=1)
        if schedule.is_sync(t):
            origin = run.models[:, t].mean(axis=0)
        at_end[:, t] = np.linalg.norm(run.models[:, t] - origin, axis=1)
    return at_end / _unit(run), after_update / _unit(run)


def _from_mean(models: Array) -> Array:
    """Distances from the mean over ranks; shape (ranks, iterations)."""
    distance: Array = np.linalg.norm(models - models.mean(axis=0), axis=2)
    return distance


@dataclass(frozen=True, slots=True)
class Worst:
    """The gradients that part a rank from the mean as far as the run's lateness allows: how far, where, and their signs."""

    mean: float
    rank: int
    iteration: int
    signs: Array

    def problem(self, learning_rate: float = 1.0) -> TugOfWar:
        """Gradients with these signs: the same lateness with them goes exactly so far."""
        ranks, iterations = self.signs.shape
        return TugOfWar(ranks, iterations, learning_rate, self.signs)


def worst_gradients(run: Observed) -> Worst:
    """From a run of a `Ledger`, whose lateness does not depend on gradients.

    A model is initial - learning_rate * sum of c(u) g(u) over all updates u. So the distance of a rank's from the mean is at most
    learning_rate * M * sum of |c(u) - mean of c(u)|, and that is reached if every g(u) is M long and has the sign of its difference.
    """
    if not isinstance(run.problem, Ledger):
        raise InputError(f"problem = {type(run.problem).__name__}: must be a Ledger, whose models say what is in them")
    weights = run.updated[:, :, 1:]
    differences = weights - weights.mean(axis=0)
    reach = np.abs(differences).sum(axis=2)
    rank, iteration = (int(n) for n in np.unravel_index(reach.argmax(), reach.shape))
    signs = np.where(differences[rank, iteration] < 0, 1.0, -1.0).reshape(run.models.shape[:2])
    return Worst(float(reach[rank, iteration]), rank, iteration, signs)


# -- the rate ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """value = constant * T^exponent, fitted to logarithms by least squares; error: half of the exponent's 95 % interval."""

    exponent: float
    error: float
    constant: float


def fit_rate(horizons: Sequence[int], values: Array) -> Rate:
    """values: positive, shape (horizons, seeds), all draws of different seeds. Raises InputError for fewer than three of them."""
    if values.shape[0] != len(horizons) or len(set(horizons)) < 2 or values.size < 3 or not np.all(values > 0):
        raise InputError(f"values of shape {values.shape}: must be positive, of at least two horizons, three numbers in all")
    from scipy.special import stdtrit

    x = np.repeat(np.log(np.asarray(horizons, float)), values.shape[1])
    y = np.log(values).ravel()
    centred = x - x.mean()
    spread = float((centred**2).sum())
    exponent = float((centred * y).sum() / spread)
    residuals = y - y.mean() - exponent * centred
    deviation = float(np.sqrt((residuals**2).sum() / (y.size - 2) / spread))
    constant = float(np.exp(y.mean() - exponent * x.mean()))
    return Rate(exponent, float(stdtrit(y.size - 2, 0.975)) * deviation, constant)


def mean_square_gradient(run: Observed) -> float:
    """The mean over iterations of |gradient of f|^2 at the mean of all ranks' models, from the initial model on. Of a `LogCosh`."""
    if not isinstance(run.problem, LogCosh):
        raise InputError(f"problem = {type(run.problem).__name__}: must be a LogCosh, whose gradient is known")
    means = [run.problem.initial(), *run.models.mean(axis=0)[:-1]]
    return float(np.mean([np.sum(run.problem.full_gradient(mean) ** 2) for mean in means]))


def measure_rate(algorithm: str, case: Case, horizons: Sequence[int], seeds: Sequence[int], factor: float) -> Array:
    """`mean_square_gradient` of runs of so many iterations with learning rate factor / sqrt(T); shape (horizons, seeds).

    The data are those of seed 0; examples drawn, and who is late (`straggling`, unless the case has its own), those of each seed.
    """
    values = np.empty((len(horizons), len(seeds)))
    for place, seed in np.ndindex(values.shape):
        iterations = horizons[place]
        problem = LogCosh(case.ranks, factor / iterations**0.5, draws=seeds[seed] * len(horizons) + place)
        run = run_simulated(algorithm, replace(case, iterations=iterations, seed=seeds[seed]), problem)
        values[place, seed] = mean_square_gradient(run)
    return values
