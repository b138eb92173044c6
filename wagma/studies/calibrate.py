"""Fits a scenario's free parameters to measured throughputs. `wagma calibrate`; docs/fidelity.md says how far that carries.

Least squares with bounds (scipy, trust region reflective) over the logarithm of throughput: a residual is log(simulated / measured),
over what the reading and the model may be off. One set of values serves all algorithms and scales; every evaluation draws the same random
numbers, so that a difference between two evaluations is one of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.api import check_settings, choose_engine
from wagma.errors import InputError, WagmaError
from wagma.scenario import Scenario, as_table, read
from wagma.sim.capacity import check_memory
from wagma.studies import pool
from wagma.studies.observations import Observation

#: How far a good model may be off at a point, relative, beside the reading: a point is not trusted better than this.
MODEL_ERROR = 0.03
#: Finite differences in units of a parameter's range. Throughput has small steps where two events change their order.
STEP = 0.01
MOST_EVALUATIONS = 20

Runner = Callable[[Sequence[pool.Job], pool.Report], Iterator[pool.Finished]]
Progress = Callable[[int, int], None]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A fitted value with its bounds. deviation: one standard deviation, None if the points do not determine it.

    From the Jacobian at the solution, scaled by the scatter of the residuals: how far the value would move if the errors at the points were
    others of the same size, independent of each other. It knows nothing of what is wrong with the model.
    """

    key: str
    value: float
    low: float
    high: float
    deviation: float | None

    @property
    def at_bound(self) -> bool:
        """Whether the fit would go on if it could."""
        margin = 1e-3 * (self.high - self.low)
        return self.value - self.low < margin or self.high - self.value < margin


@dataclass(frozen=True, slots=True)
class Comparison:
    """A point: simulated against measured. counted: part of the fit and of the means."""

    observation: Observation
    simulated: float
    counted: bool = True

    @property
    def error(self) -> float:
        """(simulated - measured) / measured."""
        return self.simulated / self.observation.throughput - 1

    @property
    def beyond(self) -> float:
        """How much of the error the reading cannot explain: max(0, |simulated - measured| - read_error) / measured."""
        off = abs(self.simulated - self.observation.throughput) - self.observation.read_error
        return max(0.0, off) / self.observation.throughput


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A fit without the points of one scale, and what it predicts for them."""

    ranks: int
    parameters: list[Parameter]
    points: list[Comparison]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fit. noise: how much the throughputs differ with another seed, relative, root mean square: what a point cannot be better than."""

    scenario: Scenario
    parameters: list[Parameter]
    points: list[Comparison]
    left_out: list[LeftOut]
    noise: float
    simulations: int

    @property
    def changes(self) -> dict[str, float]:
        """The fitted values by dotted key."""
        return {parameter.key: parameter.value for parameter in self.parameters}


def mean_error(points: Sequence[Comparison]) -> float:
    """The mean of |error| over the points that count."""
    return float(np.mean([abs(point.error) for point in points if point.counted]))


def mean_beyond(points: Sequence[Comparison]) -> float:
    """The mean of the error beyond the reading over the points that count."""
    return float(np.mean([point.beyond for point in points if point.counted]))


def in_processes(count: int) -> Runner:
    """A runner that keeps so many processes busy."""
    return lambda jobs, report: pool.run_processes(jobs, count, report)


def free_parameters(scenario: Scenario, free: Mapping[str, tuple[float, float]]) -> list[Parameter]:
    """The parameters with the values that the scenario has, where a fit begins. Raises InputError for keys or bounds that do not fit."""
    parameters = []
    for key, (low, high) in free.items():
        where = f"{scenario.source}: free parameter {key}"
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"{where} = [{low:g}, {high:g}]: must be two finite numbers, the smaller one first")
        value = _value(scenario, key, where)
        if not low <= value <= high:
            raise InputError(f"{where} = [{low:g}, {high:g}]: the scenario's own value, {value:g}, is not within")
        for bound in (low, high):
            scenario.replace({key: bound})
        parameters.append(Parameter(key, value, float(low), float(high), None))
    return parameters


def calibrate(
    scenario: Scenario,
    observations: Sequence[Observation],
    free: Mapping[str, tuple[float, float]] | None = None,
    leave_out: Sequence[str] | None = None,
    iterations: int | None = None,
    scales: bool = True,
    runner: Runner = pool.run_here,
    progress: Progress | None = None,
) -> Calibration:
    """Fit `free` (dotted key -> bounds; default: the scenario's [calibration]) to `observations`.

    leave_out: algorithms that are simulated and shown, but neither fitted nor counted (default: the scenario's). iterations: of every
    simulation (default: the scenario's [calibration], else its own). scales: also fit without each scale in turn, where enough points are
    left, and predict it. Raises InputError for what cannot be fitted, WagmaError if a simulation fails.
    """
    own = scenario.calibration
    count = iterations or own.iterations or scenario.iterations
    omitted = frozenset(own.leave_out if leave_out is None else leave_out)
    # A CSV of compute times is read here, once: it may change before the last simulation.
    scenario = read(as_table(scenario), scenario.source).replace({"iterations": count, "training": {}})
    parameters = free_parameters(scenario, own.free if free is None else free)
    if not parameters:
        raise InputError(f"{scenario.source}: no free parameter; name some, or give the scenario a [calibration.free]")
    counted = [point for point in observations if point.algorithm not in omitted]
    if len(parameters) > len(counted):
        raise InputError(
            f"{scenario.source}: {_count(len(parameters), 'free parameter')} and {_count(len(counted), 'point')}: "
            "must be at least as many points"
        )
    for point in observations:
        there = scenario.replace({"ranks": point.ranks})
        check_settings(there, point.algorithm)
        check_memory(there, point.algorithm, choose_engine(there, point.algorithm, "auto"))
    largest_first = sorted({point.ranks for point in counted}, reverse=True)
    enough = [ranks for ranks in largest_first if len(parameters) <= sum(point.ranks != ranks for point in counted)]
    held_out = enough if scales else []
    most = (1 + len(held_out)) * (2 + MOST_EVALUATIONS) * len(counted) * (1 + len(parameters))
    simulator = _Simulator(scenario, runner, progress, most)
    fit = _fit(simulator, parameters, counted, [_place(parameters)])
    points = simulator.points(fit, counted, True) + simulator.points(fit, [p for p in observations if p not in counted], False)
    other = _Simulator(scenario.replace({"seed": scenario.seed + 1}), runner, None, most)
    again = other.points(fit, counted, True)
    noise = math.sqrt(np.mean([(a.simulated / b.simulated - 1) ** 2 for a, b in zip(again, points, strict=False)]) / 2)
    left_out = []
    for ranks in held_out:
        # Not from the scenario's values, nor from those just found: they may know the scale that is left out.
        without = _fit(simulator, parameters, [point for point in counted if point.ranks != ranks], [])
        left_out.append(LeftOut(ranks, without, simulator.points(without, [p for p in counted if p.ranks == ranks], True)))
    return Calibration(scenario, fit, sorted(points, key=_order), left_out, noise, simulator.done + other.done)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _order(point: Comparison) -> int:
    return point.observation.ranks


class _Simulator:
    """Throughputs by parameters and points; each simulation is made once."""

    def __init__(self, scenario: Scenario, runner: Runner, progress: Progress | None, most: int) -> None:
        self.scenario = scenario
        self.done = 0
        self._runner = runner
        self._progress = progress
        self._most = most
        self._known: dict[tuple[Any, ...], float] = {}

    def throughputs(self, settings: Sequence[Mapping[str, float]], points: Sequence[Observation]) -> list[list[float]]:
        """For each settings the simulated throughput at each point; all runs at once, so that they can share cores."""
        wanted: dict[tuple[Any, ...], pool.Job] = {}
        for changes in settings:
            for point in points:
                key = (tuple(changes.items()), point.ranks, point.algorithm)
                if key not in self._known and key not in wanted:
                    table = self.scenario.replace({**changes, "ranks": point.ranks}).table
                    wanted[key] = pool.Job(dict(table), self.scenario.source, point.algorithm)
        keys = list(wanted)
        # The longest ones first, so that no core is left with a long one at the end.
        keys.sort(key=lambda key: -key[1])
        with closing(_as_generator(self._runner([wanted[key] for key in keys], lambda _index, _share: None))) as runs:
            for finished in runs:
                if finished.figures is None:
                    _, ranks, algorithm = keys[finished.index]
                    raise WagmaError(f"{algorithm} on {ranks} ranks: {finished.error}")
                self._known[keys[finished.index]] = finished.figures["throughput"]
                self.done += 1
                if self._progress is not None:
                    self._progress(min(self.done, self._most), self._most)
        return [[self._known[tuple(changes.items()), point.ranks, point.algorithm] for point in points] for changes in settings]

    def points(self, parameters: Sequence[Parameter], points: Sequence[Observation], counted: bool) -> list[Comparison]:
        """Simulated against measured."""
        changes = {parameter.key: parameter.value for parameter in parameters}
        simulated = self.throughputs([changes], points)[0]
        return [Comparison(point, value, counted) for point, value in zip(points, simulated, strict=True)]


def _as_generator(runs: Iterator[pool.Finished]) -> Any:
    yield from runs


def _place(parameters: Sequence[Parameter]) -> Vector:
    """Where the values are between their bounds, from 0 to 1."""
    return np.array([(p.value - p.low) / (p.high - p.low) for p in parameters])


def _fit(
    simulator: _Simulator, begin: Sequence[Parameter], points: Sequence[Observation], starts: list[Vector]
) -> list[Parameter]:
    """The parameters that fit `points` best; each is scaled to [0, 1] within its bounds.

    Where throughput does not depend on a parameter (communication that compute hides) there is no way down to follow: so the
    search begins at the best of `starts`, the middle, and a few places spread evenly (a Halton sequence).
    """
    from scipy.optimize import least_squares
    from scipy.stats import qmc

    low = np.array([parameter.low for parameter in begin])
    width = np.array([parameter.high - parameter.low for parameter in begin])
    measured = np.log([point.throughput for point in points])
    scale = np.array([math.hypot(MODEL_ERROR, point.read_error / point.throughput) for point in points])

    def changes(x: Vector) -> dict[str, float]:
        values = np.clip(low + x * width, low, low + width)
        return {p.key: float(f"{value:.6g}") for p, value in zip(begin, values, strict=True)}

    def residuals(x: Vector) -> Vector:
        simulated = simulator.throughputs([changes(x)], points)[0]
        return np.asarray((np.log(simulated) - measured) / scale)

    def jacobian(x: Vector) -> Vector:
        steps = np.where(x + STEP <= 1, STEP, -STEP)
        moved = [changes(x + step * unit) for step, unit in zip(steps, np.eye(x.size), strict=True)]
        here, *there = np.log(simulator.throughputs([changes(x), *moved], points))
        return np.asarray(((np.array(there) - here) / steps[:, None] / scale).T)

    spread = qmc.Halton(len(begin), scramble=False).random(1 + 2 * len(begin))[1:]
    places = [*starts, np.full(len(begin), 0.5), *spread]
    tried = np.log(simulator.throughputs([changes(place) for place in places], points))
    costs = (((tried - measured) / scale) ** 2).sum(axis=1)
    start = np.clip(places[int(costs.argmin())], 1e-3, 1 - 1e-3)
    found = least_squares(residuals, start, jacobian, bounds=(0, 1), xtol=1e-3, ftol=1e-4, gtol=1e-6, max_nfev=MOST_EVALUATIONS)
    deviations = _deviations(np.asarray(found.jac), found.fun)
    values = changes(found.x)
    return [
        replace(parameter, value=values[parameter.key], deviation=None if sigma is None else float(sigma * size))
        for parameter, sigma, size in zip(begin, deviations, width, strict=True)
    ]


def _deviations(jacobian: Vector, residuals: Vector) -> list[float | None]:
    """Standard deviations from (J'J)^-1 s^2 with s^2 = sum of squares / (points - parameters); None where the points say nothing."""
    count, parameters = jacobian.shape
    if count == parameters:
        return [None] * parameters
    variance = float(residuals @ residuals) / (count - parameters)
    _, singular, basis = np.linalg.svd(jacobian, full_matrices=False)
    weak = singular <= 1e-6 * max(float(singular.max()), 1e-30)
    inverse = np.where(weak, 0.0, 1 / np.where(weak, 1.0, singular) ** 2)
    spread = (basis.T**2) @ inverse
    unknown = (basis[weak] ** 2).sum(axis=0) > 1e-6
    return [None if lost else math.sqrt(variance * value) for lost, value in zip(unknown, spread, strict=True)]


def _value(scenario: Scenario, key: str, where: str) -> float:
    """The number that the scenario has at a dotted key."""
    here: Any = scenario.table
    for part in key.split("."):
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, Mapping) and part in here:
            here = here[part]
        else:
            raise InputError(f"{where}: the scenario has no such key; give it a value there, where the fit begins")
    if isinstance(here, bool) or not isinstance(here, int | float):
        raise InputError(f"{where}: the scenario has {here!r} there; must be a number")
    return float(here)
