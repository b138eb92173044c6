"""Measures what docs/convergence.md says: how close runs come to its bounds, that violations are seen, and the rate against 1/sqrt(T).

.venv/bin/python tools/convergence.py [--plot docs/convergence.png] takes some ten minutes; --cases, --horizons and --seeds make it shorter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from wagma.core.protocol import NONE, Machine, Output, Start
from wagma.errors import InputError, WagmaError
from wagma.progress import Progress
from wagma.report.style import LOOKS, check_picture, look, picture
from wagma.sim import collective, driver
from wagma.sim.collective import Collective, Member
from wagma.testing import (
    Case,
    Distances,
    LogCosh,
    Observed,
    Reach,
    TugOfWar,
    assert_distances,
    assert_synced,
    distances,
    fit_rate,
    measure_rate,
    run_simulated,
    worst_gradients,
)
from wagma.text import markdown_table

#: Ranks, group size, sync period.
SHAPES = ((4, 1, 8), (4, 2, 4), (4, 2, 8), (4, 4, 8), (8, 2, 8), (8, 4, 8), (8, 8, 8), (6, 4, 8), (16, 4, 10))
RATE_RANKS, RATE_PERIOD = 8, 10
ALGORITHMS = ("wagma_sgd", "local_sgd", "allreduce_sgd")


class KeepsPublished(Machine):
    """Goes on contributing, after a sync, what was published before it: contributions older than promise 5 allows."""

    __slots__ = ()

    def exec_done(self, version: int) -> list[Output]:
        """Sync or not, the published model stays."""
        if not self.schedule.is_sync(version):
            return super().exec_done(version)
        published, self.activated, activated = self.published, NONE, self.activated  # starts nothing yet
        outputs = super().exec_done(version)
        self.published, self.activated = published, activated
        self._start(outputs)
        return outputs


class Stuck(Collective):
    """Has ranks that are late contribute the initial model, whatever came since: no sync replaces it."""

    def initialize(self, rank: int, model: Any) -> None:
        """Keep it."""
        super().initialize(rank, model)
        self.initial = model

    def _start(self, member: Member, start: Start) -> None:
        if start.stamp == start.version or self.schedule.is_sync(start.version):
            super()._start(member, start)
            return
        own, member.buffers[start.buffer] = member.buffers[start.buffer], self.initial
        super()._start(member, start)
        member.buffers[start.buffer] = own


@contextmanager
def replaced(module: ModuleType, name: str, defect: type) -> Iterator[None]:
    """Simulations inside run the defect."""
    whole = getattr(module, name)
    setattr(module, name, defect)
    try:
        yield
    finally:
        setattr(module, name, whole)


@dataclass(frozen=True, slots=True)
class Violation:
    """Runs that should have a sync period of PERIOD. defect: what is replaced by what. straight: all ranks pull one way, nothing is drawn.

    behind: one rank's first iteration lasts as long as the whole run of the others; else, of straight runs, one is late once, at the end.
    """

    name: str
    ranks: int
    group_size: int
    sync_period: int | str = 8
    defect: tuple[ModuleType, str, type] | None = None
    straight: bool = False
    behind: bool = False
    periods: int = 12


PERIOD = 8
_KEPT, _STUCK = (collective, "Machine", KeepsPublished), (driver, "Collective", Stuck)
VIOLATIONS = (
    Violation("none", 4, 1),
    Violation("none", 4, 2),
    Violation("none", 4, 4),
    Violation("no syncs", 4, 1, "never"),
    Violation("no syncs, one rank far behind", 64, 4, "never", straight=True, behind=True, periods=8),
    Violation("what was published outlives a sync", 4, 1, defect=_KEPT),
    Violation("what was published outlives a sync", 4, 2, defect=_KEPT),
    Violation("who is late contributes the initial model", 4, 2, defect=_STUCK, straight=True),
    Violation("who is late contributes the initial model", 4, 4, defect=_STUCK, straight=True),
)


def hostile(draw: np.random.Generator, ranks: int, iterations: int, sync_period: int) -> list[list[int]]:
    """Lateness of one of three kinds: anything, now and then very long, or long at the beginning of a sync period and then a burst."""
    kind = draw.integers(3)
    if kind == 0:
        rows = draw.integers(0, 60, (ranks, iterations))
    elif kind == 1:
        rows = draw.choice([0, 0, 0, 1, 30, 200], (ranks, iterations))
    else:
        rows = draw.choice([0, 0, 1, 3], (ranks, iterations))
        rows[:, ::sync_period] = draw.choice([0, 1, 5, 10, 20, 40, 80], rows[:, ::sync_period].shape)
    found: list[list[int]] = rows.tolist()
    return found


def hostile_case(seed: int, ranks: int, group_size: int, sync_period: int, periods: int = 2) -> Case:
    """A case with such lateness."""
    draw = np.random.default_rng((seed, ranks, group_size, sync_period))
    iterations = periods * sync_period
    late = hostile(draw, ranks, iterations, sync_period)
    return Case(ranks, iterations, group_size, sync_period, seed=seed, lateness=late, hop=float(draw.choice([0.1, 1.0, 7.0])))


def tightness(cases: int, progress: Progress) -> list[list[str]]:
    """For each shape the largest distances of any case, with the worst gradients for it, beside the bounds."""
    rows = []
    for number, (ranks, group_size, sync_period) in enumerate(SHAPES):
        reach = mean = log_cosh = 0.0
        for seed in range(cases):
            progress(number * cases + seed, len(SHAPES) * cases)
            case = hostile_case(seed, ranks, group_size, sync_period)
            ledger = run_simulated("wagma_sgd", case)
            mean = max(mean, worst_gradients(ledger).mean)
            by_period = ledger.updated[:, :, 1:].reshape(ranks, 2, sync_period, ranks, 2, sync_period)
            reach = max(reach, *(float(by_period[:, p, :, :, p].sum(axis=(2, 3)).max()) for p in range(2)))
            trained = run_simulated("wagma_sgd", case, LogCosh(ranks, 0.5, spread=8.0, draws=seed))
            assert_distances(trained)
            log_cosh = max(log_cosh, distances(trained).mean)
        bounds = Distances.bounds(ranks, Reach.of(ledger.schedule))
        rows.append(
            [
                *(
                    f"{ranks}, {group_size}, {sync_period}",
                    f"{reach:.2f}",
                    f"{bounds.updated:.2f}",
                    f"{reach / bounds.updated:.2f}",
                ),
                *(f"{mean:.2f}", f"{log_cosh:.2f}", f"{bounds.mean:.2f}", f"{mean / bounds.mean:.2f}"),
            ]
        )
    return rows


def violated(violation: Violation, seed: int, ledger: bool = False) -> Observed:
    """One run. ledger: of a `Ledger`, else of a tug of war."""
    ranks, iterations = violation.ranks, violation.periods * PERIOD
    case = hostile_case(seed, ranks, violation.group_size, PERIOD, violation.periods)
    signs = None
    if violation.straight:
        signs = -np.ones((ranks, iterations))
        late = np.full((ranks, iterations), 50)
        if violation.behind:
            late[0] = 1
            late[0, 0] = 100 * iterations
        else:
            late[0, -4] = 120
        case = replace(case, lateness=late.tolist())
    case = replace(case, sync_period=violation.sync_period)
    with replaced(*violation.defect) if violation.defect else nullcontext():
        return run_simulated("wagma_sgd", case, None if ledger else TugOfWar(ranks, iterations, signs=signs))


def is_noticed(check: Callable[[Observed, int], None], run: Observed) -> bool:
    """Whether an assertion fails."""
    try:
        check(run, PERIOD)
    except AssertionError:
        return True
    return False


def violations(cases: int, progress: Progress) -> list[list[str]]:
    """Runs that break the staleness bound, held against the bounds of the sync period that they should have had."""
    rows = []
    for number, violation in enumerate(VIOLATIONS):
        largest, runs, noticed, seen = 0.0, 1 if violation.straight else cases, 0, 0
        for seed in range(runs):
            progress(number * cases + seed, len(VIOLATIONS) * cases)
            run = violated(violation, seed)
            largest = max(largest, distances(run, PERIOD).mean)
            noticed += is_noticed(assert_distances, run)
            seen += violation.ranks <= 8 and is_noticed(assert_synced, violated(violation, seed, ledger=True))
        bound = Distances.bounds(violation.ranks, Reach.of(run.schedule, PERIOD)).mean
        shape = f"{violation.ranks}, {violation.group_size}"
        by_ledger = f"{seen} of {runs}" if violation.ranks <= 8 else ""
        rows.append([violation.name, shape, f"{largest:.2f}", f"{bound:.2f}", f"{noticed} of {runs}", by_ledger])
    return rows


def rates(horizons: list[int], seeds: int, progress: Progress) -> dict[str, Any]:
    """Values, shape (horizons, seeds), of each algorithm."""
    found = {}
    case = Case(RATE_RANKS, sync_period=RATE_PERIOD)
    for number, algorithm in enumerate(ALGORITHMS):
        progress(number, len(ALGORITHMS))
        found[algorithm] = measure_rate(algorithm, case, horizons, list(range(seeds)), factor=RATE_RANKS)
    return found


def rate_rows(horizons: list[int], values: dict[str, Any]) -> list[list[str]]:
    """A row for each horizon, and two with exponents: of all of them, and without the first two, where the learning rate is largest."""
    rows = []
    for place, horizon in enumerate(horizons):
        means = [values[name][place].mean() for name in ALGORITHMS]
        cells = [f"{mean:.3g} ({mean * horizon**0.5:.3f})" for mean in means]
        rows.append([str(horizon), f"{RATE_RANKS / horizon**0.5:.3f}", *cells])
    for first in (0, 2) if len(horizons) > 3 else (0,):
        fits = [fit_rate(horizons[first:], values[name][first:]) for name in ALGORITHMS]
        rows.append([f"exponent from {horizons[first]}", "", *(f"{fit.exponent:.3f} ± {fit.error:.3f}" for fit in fits)])
    return rows


def how_late(iterations: int) -> str:
    """How late the ranks of such a run are."""
    trace = run_simulated("wagma_sgd", Case(RATE_RANKS, iterations, sync_period=RATE_PERIOD)).trace
    joined = [a.fresh for a in trace.iterations if not trace.schedule.is_sync(a.iteration)]
    stale = [e.version - e.own_stamp for e in trace.executions]
    fresh = f"{100 * np.mean([bool(one) for one in joined]):.0f} % of arrivals are fresh"
    return f"wagma_sgd, {RATE_RANKS} ranks, tau = {RATE_PERIOD}: {fresh}, staleness {np.mean(stale):.2f} on average, {max(stale)} at most"


def draw(path: str, horizons: list[int], values: dict[str, Any]) -> None:
    """Mean squared gradient against the horizon, each seed a point, beside 1/sqrt(T)."""
    with picture(path) as figure:
        axes = figure.subplots()
        for name in ALGORITHMS:
            own, mean = look(name), values[name].mean(axis=1)
            axes.plot(horizons, mean, color=own.colour, marker=own.marker, label=own.name)
            for seed in values[name].T:
                axes.plot(horizons, seed, linestyle="", marker=".", markersize=2, color=own.colour)
        first = values[ALGORITHMS[0]].mean(axis=1)[-1] * 1.5
        reference = [first * (horizons[-1] / horizon) ** 0.5 for horizon in horizons]
        axes.plot(horizons, reference, color=LOOKS["ideal"].colour, linestyle=(0, (4, 2)), label="1 / sqrt(T)")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("iterations T of each rank (learning rate P / sqrt(T))")
        axes.set_ylabel("mean of |gradient of f|²")
        axes.grid(True)
        axes.legend(frameon=False)


def count(text: str) -> int:
    """Of cases, iterations or runs."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 1")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=count, default=300, help="random latenesses for each shape (default: 300)")
    parser.add_argument(
        "--horizons", type=count, nargs="+", default=[2**n for n in range(6, 13)], help="iterations of each rank"
    )
    parser.add_argument("--seeds", type=count, default=4, help="runs of each horizon (default: 4)")
    parser.add_argument("--only", choices=("distances", "rate"), help="one part (default: both)")
    parser.add_argument("--plot", help="a picture of the rate")
    chosen = parser.parse_args(arguments)
    try:
        if len(set(chosen.horizons)) < 2 or len(chosen.horizons) * chosen.seeds < 3:
            given = f"--horizons {' '.join(map(str, chosen.horizons))} --seeds {chosen.seeds}"
            raise InputError(f"{given}: a rate needs two different horizons, and three runs in all")
        if chosen.plot is not None:
            check_picture(chosen.plot)
    except WagmaError as error:
        parser.error(str(error))
    if chosen.only != "rate":
        with Progress("distances") as progress:
            header = ["P, S, tau", "updates", "bound", "ratio", "from the mean", "log cosh", "bound", "ratio"]
            print(markdown_table(header, tightness(chosen.cases, progress)), "\n")
        with Progress("violations") as progress:
            header = ["violation", "P, S", "from the mean", "bound", "beyond it", "seen in a ledger"]
            print(markdown_table(header, violations(chosen.cases // 10 or 1, progress)), "\n", flush=True)
    if chosen.only != "distances":
        with Progress("rates") as progress:
            values = rates(chosen.horizons, chosen.seeds, progress)
        print(markdown_table(["T", "learning rate", *ALGORITHMS], rate_rows(chosen.horizons, values)), "\n")
        print(how_late(200), flush=True)
        if chosen.plot:
            draw(chosen.plot, chosen.horizons, values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
