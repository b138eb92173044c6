"""`wagma compare-worlds`: the same scenario on real ranks and in the simulator, and how far apart the two are.

Nothing of a run that is compared goes into its simulation. That has the scenario's seed, settings, delays and, where the run is paced, its
compute times; the network of `wagma.studies.machine`; and from a rehearsal what iterations take beside that. A rehearsal is the same
scenario on as many ranks at once, in groups of one: every rank does everything, but nobody has anything to do with anybody.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.algorithms import Collectives, specification
from wagma.columns import Columns, Totals
from wagma.errors import InputError, MissingDependencyError
from wagma.results import Result, summarize
from wagma.scenario import Scenario, as_table
from wagma.sim import driver
from wagma.sim.numerics import Nothing
from wagma.timing.compute import LONGEST_S
from wagma.timing.imbalance import NANOSECONDS, Times
from wagma.trace import Trace
from wagma.workloads import replicas

SCHEMA = 1
#: The simulator's throughput is promised to be that near the real one, where it is promised to be near.
AIM = 0.1
#: The algorithm of a rehearsal, and what makes its groups groups of one.
REHEARSED = "wagma_sgd"
#: ... and of those that never communicate: their iterations have nothing of a collective.
REHEARSED_IDEAL = "ideal"
ALONE = {f"algorithms.{REHEARSED}.group_size": 1, f"algorithms.{REHEARSED}.sync_period": "never"}
SHORTEST_S = 1e-6
GRADIENTS = 20

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Regime:
    """Whether ranks take each other's cores. name: own_cores, paced, stretched or shared_cores; aimed: the aim is for this one."""

    name: str
    text: str
    aimed: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One algorithm with one seed, in both worlds: what its figures are made of."""

    seed: int
    real: Totals
    simulated: Totals
    results: tuple[Result, Result]  # real, simulated

    @property
    def ratio(self) -> float:
        """Simulated throughput over the real one."""
        return self.results[1].throughput / self.results[0].throughput


@dataclass(frozen=True, slots=True)
class Line:
    """An algorithm in both worlds, over all seeds."""

    algorithm: str
    runs: tuple[Run, ...]

    @property
    def ratio(self) -> float:
        """Median over seeds of simulated over real throughput."""
        return statistics.median(run.ratio for run in self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """(least, most) of the same."""
        ratios = [run.ratio for run in self.runs]
        return min(ratios), max(ratios)

    def seconds(self, world: int) -> Seconds:
        """How long each iteration of each rank took, over all seeds, in order. world: 0 real, 1 simulated."""
        parts = [durations_s((run.real, run.simulated)[world]) for run in self.runs]
        return np.sort(np.concatenate(parts))

    def fresh(self, world: int) -> float | None:
        """Share of arrivals in time for their own version, syncs excepted; None: there are none."""
        totals = [(run.real, run.simulated)[world] for run in self.runs]
        joined = sum(one.joined for one in totals)
        return sum(one.fresh for one in totals) / joined if joined else None

    def staleness(self, world: int) -> dict[int, float]:
        """Share of contributions (models, of gossip) by staleness; empty: there are none."""
        counts: dict[int, int] = {}
        for run in self.runs:
            for value, count in (run.real, run.simulated)[world].staleness.items():
                counts[value] = counts.get(value, 0) + count
        total = sum(counts.values())
        return {value: counts[value] / total for value in sorted(counts)}

    @property
    def wasserstein(self) -> float:
        """Wasserstein-1 distance of the two distributions of iteration times, over the mean of the real ones."""
        from scipy.stats import wasserstein_distance  # here and not above: it takes a second to import

        real = self.seconds(0)
        return float(wasserstein_distance(real, self.seconds(1)) / real.mean())

    @property
    def kolmogorov_smirnov(self) -> float:
        """The largest difference of the two empirical distribution functions of iteration times, 0 to 1."""
        from scipy.stats import ks_2samp

        return float(ks_2samp(self.seconds(0), self.seconds(1), method="asymp").statistic)


@dataclass(frozen=True, slots=True)
class Worlds:
    """All of it. network: what the simulations had; work_s: a gradient's processor time; beside_s: quartiles of what iterations of
    rehearsals took beside pace and delays.
    """

    scenario: Scenario
    regime: Regime
    network: Mapping[str, Any]
    work_s: float
    beside_s: tuple[float, float, float]
    lines: tuple[Line, ...]

    @property
    def seeds(self) -> list[int]:
        """All lines have the same."""
        return [run.seed for run in self.lines[0].runs]

    @property
    def worst(self) -> Line:
        """The line whose throughput is furthest off."""
        return max(self.lines, key=lambda line: abs(line.ratio - 1))


def regime(scenario: Scenario, cores: int) -> Regime:
    """By the scenario's pace, and how many cores there are for its ranks."""
    ranks, training = scenario.ranks, scenario.training
    if training.paced:
        text = f"paced: ranks sleep for most of their compute time, so {ranks} of them may share {cores} cores"
        return Regime("paced", text, True)
    if ranks <= cores:
        return Regime("own_cores", f"real compute, each of {ranks} ranks on a core of its own ({cores})", True)
    if ranks <= cores * training.stretch:
        text = f"real compute, stretched {training.stretch:g} times by sleeping, so that {cores} cores have enough for {ranks} ranks"
        return Regime("stretched", text, True)
    text = (
        f"real compute, {ranks} ranks on {cores} cores: who waits leaves its core to others, which the simulator does not model"
    )
    return Regime("shared_cores", text, False)


def gradient_s(scenario: Scenario) -> float:
    """Median processor seconds of a gradient, of rank 0's first batches, in this process. Raises MissingDependencyError."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(f"a real run needs torch, which cannot be imported ({error})") from error
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the launcher has its ranks
    try:
        replica = replicas(scenario, range(1))[0]
        replica.warm_up()
        taken = []
        for iteration in range(min(GRADIENTS, scenario.iterations)):
            before = time.thread_time_ns()
            replica.compute_gradient(iteration)
            taken.append((time.thread_time_ns() - before) * 1e-9)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(taken)


def durations_s(totals: Totals) -> Seconds:
    """Of each iteration of each rank."""
    valid = np.arange(totals.durations_ns.shape[0])[:, None] < totals.counts
    return totals.durations_ns[valid] / NANOSECONDS


def compute_table(scenario: Scenario, rehearsal: Trace, iterations: int) -> tuple[Seconds, Seconds]:
    """(seconds that each rank takes in each iteration, injected delays aside; the part that the rehearsal has added), (ranks, iterations).

    Paced: what the scenario draws, and on top what the rehearsal's iterations took beside their pace. Else what these took. A rehearsal
    that is shorter begins again.
    """
    columns = Columns.of(rehearsal)
    taken = columns.totals().durations_ns / NANOSECONDS
    times = Times(scenario.ranks, scenario.seed, scenario.compute, scenario.imbalance)
    rows = int(columns.counts.min())
    if not rows:
        raise InputError(f"{rehearsal.source}: a rehearsal without iterations")
    drawn = times.compute_block(0, max(rows, iterations))
    beside = taken[:rows]
    if specification(rehearsal.header.algorithm).delayed:
        beside = beside - times.delay_block(0, drawn[:rows]) / NANOSECONDS
    if scenario.training.paced:
        beside = beside - drawn[:rows] / NANOSECONDS
    again = beside[np.arange(iterations) % rows]
    whole = again + drawn[:iterations] / NANOSECONDS if scenario.training.paced else again
    return np.clip(whole, SHORTEST_S, LONGEST_S).T, beside.T


def rehearsal_of(algorithm: str) -> str:
    """The algorithm whose rehearsal tells what its iterations take."""
    return REHEARSED_IDEAL if specification(algorithm).collectives is Collectives.NONE else REHEARSED


def counterpart(scenario: Scenario, network: Mapping[str, Any], computed: Seconds) -> Scenario:
    """The scenario for the simulator: timing alone, on the measured network, with these compute times and no noise beside theirs."""
    training = {**as_table(scenario).get("training", {}), "workload": "none"}
    compute = {"kind": "trace", "seconds": computed.tolist()}
    return scenario.replace({"network": dict(network), "compute": compute, "noise": {}, "training": training})


def simulate(
    scenario: Scenario,
    algorithm: str,
    network: Mapping[str, Any],
    rehearsals: Mapping[str, Trace],
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """The run that a real one of `scenario` is compared with."""
    tuned = scenario.tuned(algorithm)
    computed, _ = compute_table(tuned, rehearsals[rehearsal_of(algorithm)], tuned.iterations)
    return driver.simulate(counterpart(tuned, network, computed), algorithm, Nothing(), progress)


def pair(seed: int, real: Trace, simulated: Trace) -> Run:
    """Two traces as one run. Raises InputError if they are not of the same algorithm, ranks and iterations."""
    both = [Columns.of(trace).totals() for trace in (real, simulated)]
    if real.header.algorithm != simulated.header.algorithm or not np.array_equal(both[0].counts, both[1].counts):
        raise InputError(f"{real.source} and {simulated.source} are not the same run in two worlds")
    return Run(seed, both[0], both[1], (summarize(real), summarize(simulated)))


def beside_of(scenario: Scenario, rehearsals: Sequence[Trace]) -> tuple[float, float, float]:
    """Quartiles of what rehearsals' iterations took beside pace and delays; of real compute, of all that they took."""
    parts = [
        compute_table(scenario.replace({"seed": scenario.seed + number}), one, 1)[1].ravel()
        for number, one in enumerate(rehearsals)
    ]
    low, median, high = np.percentile(np.concatenate(parts), (25, 50, 75))
    return float(low), float(median), float(high)


def to_json(worlds: Worlds) -> dict[str, Any]:
    """The document of `--json`."""
    low, median, high = worlds.beside_s
    return {
        "schema": SCHEMA, "scenario": worlds.scenario.name, "ranks": worlds.scenario.ranks,
        "iterations": worlds.scenario.iterations, "seeds": worlds.seeds,
        "regime": {"name": worlds.regime.name, "aimed": worlds.regime.aimed, "text": worlds.regime.text}, "aim": AIM,
        "network": worlds.network, "gradient_s": worlds.work_s, "beside_s": {"median": median, "quartiles": [low, high]},
        "lines": [_line(line) for line in worlds.lines],
    }  # fmt: skip


def _line(line: Line) -> dict[str, Any]:
    def both(figure: Callable[[int], Any]) -> dict[str, Any]:
        return {"real": figure(0), "simulated": figure(1)}

    return {
        "algorithm": line.algorithm,
        "throughput_ratio": {"median": line.ratio, "spread": list(line.spread), "runs": [run.ratio for run in line.runs]},
        "throughput": both(lambda world: [run.results[world].throughput for run in line.runs]),
        "unit": f"{line.runs[0].results[0].unit}/s",
        "iteration_s": both(lambda world: float(line.seconds(world).mean())),
        "wasserstein_over_mean": line.wasserstein,
        "kolmogorov_smirnov": line.kolmogorov_smirnov,
        "fresh_fraction": both(line.fresh),
        "staleness": both(lambda world: {str(value): share for value, share in line.staleness(world).items()}),
    }
