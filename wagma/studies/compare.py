"""Algorithms by their time to a score: the same scenario, with ranks that train, for every algorithm or ablation and several seeds.

A seed decides everything that is random: the initial model, the shards, the order of the data, delays and partners. All lines of a
comparison get the same seeds, so that they start from the same models on the same data.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wagma.algorithms import ALGORITHMS, Collectives, specification
from wagma.api import check_settings, select_algorithms
from wagma.core.schedule import NEVER
from wagma.errors import InputError, WagmaError
from wagma.results import Result, summarize
from wagma.scenario import Scenario, as_table, load
from wagma.scores import Score
from wagma.sim.capacity import available_bytes, check_memory, needed_bytes
from wagma.studies import pool
from wagma.studies.bound import Bound
from wagma.studies.learning import Point, Progress, train
from wagma.workloads import score_of, workload

SCHEMA = 1
SEEDS = 3
#: Evaluations of a run, unless told otherwise.
POINTS = 200
#: The variant that all ablations take something away from.
BASE = "wagma_sgd"
Number = Callable[["Learned"], float]


@dataclass(frozen=True, slots=True)
class Variant:
    """What is compared: an algorithm, with dotted keys set. part: the section of a table of ablations that it is in."""

    label: str
    algorithm: str
    changes: Mapping[str, Any]
    part: str = ""


@dataclass(frozen=True, slots=True)
class Learned:
    """One run: its figures, and the score of the consolidated model on the way."""

    seed: int
    result: Result
    curve: tuple[Point, ...]

    @property
    def score(self) -> float:
        """Of the consolidated model at the end."""
        assert self.result.score is not None
        return self.result.score

    @property
    def own_score(self) -> float:
        """The mean over ranks of what their own last models reach."""
        assert self.result.own_score is not None
        return self.result.own_score

    def seconds_to(self, target: float) -> float | None:
        """Time of the first evaluation that reaches `target`; None if none does."""
        score = self.result.scored_by
        assert score is not None
        return next((point.time_ns / 1e9 for point in self.curve if score.reaches(point.score, target)), None)

    def as_json(self, target: float) -> dict[str, Any]:
        """Without wall times: the same seed gives the same text."""
        figures = self.result.as_json()
        del figures["wall_s"]
        return {
            "seed": self.seed,
            "seconds_to_target": self.seconds_to(target),
            **figures,
            "curve": [asdict(point) for point in self.curve],
        }


@dataclass(frozen=True, slots=True)
class Line:
    """A variant and its runs, one for each seed."""

    variant: Variant
    runs: tuple[Learned, ...]

    def spread(self, figure: Number) -> tuple[float, float, float]:
        """(mean, least, largest) over the seeds."""
        values = [figure(run) for run in self.runs]
        return math.fsum(values) / len(values), min(values), max(values)

    def reached(self, target: float) -> list[float]:
        """Seconds to the target, of the runs that reach it."""
        return [seconds for run in self.runs if (seconds := run.seconds_to(target)) is not None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All lines; bound: of real runs; every: iterations between evaluations; target: the score whose time is told, of the kind `score`."""

    scenario: Scenario
    seeds: tuple[int, ...]
    every: int
    target: float
    lines: tuple[Line, ...]
    score: Score
    bound: Bound | None = None

    def line(self, algorithm: str) -> Line | None:
        """The first line of an algorithm."""
        return next((line for line in self.lines if line.variant.algorithm == algorithm), None)

    def to_json(self) -> str:
        """One line of JSON."""
        document = {
            "schema": SCHEMA,
            "scenario": self.scenario.name,
            "ranks": self.scenario.ranks,
            "iterations": self.scenario.iterations,
            "seeds": self.seeds,
            "every": self.every,
            "target": self.target,
            "score": {"name": self.score.name, "direction": self.score.direction},
            "world": "sim" if self.bound is None else "real",
            "bound": None if self.bound is None else asdict(self.bound),
            "lines": [
                {
                    "label": line.variant.label,
                    "part": line.variant.part,
                    "algorithm": line.variant.algorithm,
                    "settings": line.variant.changes,
                    "runs": [run.as_json(self.target) for run in line.runs],
                }
                for line in self.lines
            ],
        }
        return json.dumps(document, allow_nan=False)


def compare(
    scenario: str | Path | Scenario,
    algorithms: str | Sequence[str] = "all",
    seeds: int | Sequence[int] = SEEDS,
    every: int | None = None,
    target: float | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Train with each algorithm, in virtual time, and record the score along it.

    Args:
        scenario: a file, the name of a packaged one, or one in memory; it must have a workload.
        algorithms: "all" (that train a common model), or names as a list or with commas between.
        seeds: which, or how many, counted from the scenario's own.
        every: iterations between evaluations (default: a two-hundredth of all).
        target: score to tell the time to (default: a margin short of the best mean final one; of an accuracy 5 points, rounded down
            to a whole percent).
        processes: 1 runs in this process, more in as many others, which know no algorithms that were registered here.
        progress: called as progress(done, total) now and then.

    Raises:
        InputError: bad input. WagmaError: a run failed. MissingDependencyError: something that the workload needs is not installed.
    """
    base = scenario if isinstance(scenario, Scenario) else load(scenario)
    return _compare(base, algorithm_variants(algorithms), seeds, every, target, processes, progress)


def ablate(
    scenario: str | Path | Scenario,
    seeds: int | Sequence[int] = SEEDS,
    every: int | None = None,
    target: float | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """WAGMA-SGD with one thing changed at a time, as `ablation_variants` lists them; otherwise as `compare`."""
    base = scenario if isinstance(scenario, Scenario) else load(scenario)
    return _compare(base, ablation_variants(base), seeds, every, target, processes, progress)


def algorithm_variants(algorithms: str | Sequence[str]) -> list[Variant]:
    """One for each algorithm. Raises InputError for one whose ranks never communicate: there is no common model to evaluate."""
    if algorithms == "all":
        names = [name for name, spec in ALGORITHMS.items() if spec.collectives is not Collectives.NONE]
    else:
        names = select_algorithms(algorithms)
    for name in names:
        if specification(name).collectives is Collectives.NONE:
            raise InputError(f"algorithms: {name}: its ranks never communicate, so they train no common model to compare")
    return [Variant(name, name, {}) for name in names]


def ablation_variants(scenario: Scenario) -> list[Variant]:
    """The paper's ablations (W section 5), around the scenario's own settings of wagma_sgd.

    No group collectives (local SGD with the same sync period), fixed groups, group sizes from 2 to all ranks in powers of two, sync
    periods from 1 in powers of two to the number of iterations, and never.
    """
    schedule = scenario.schedule(BASE)
    own = f"algorithms.{BASE}"
    size, period = schedule.group_size, "never" if schedule.sync_period == NEVER else schedule.sync_period
    here = {f"{own}.group_size": size, f"{own}.sync_period": period, f"{own}.groups": "changing"}
    variants = [Variant(f"{BASE}, group_size {size}, sync_period {period}", BASE, here, "as it is")]
    if period != "never":
        changes = {"algorithms.local_sgd.sync_period": period}
        variants.append(Variant("no group collectives", "local_sgd", changes, "without"))
    variants.append(Variant("fixed groups", BASE, here | {f"{own}.groups": "fixed"}, "without"))
    sizes = sorted({*_powers(2, scenario.ranks), scenario.ranks, size})
    variants += [Variant(f"group_size {s}", BASE, here | {f"{own}.group_size": s}, "group_size") for s in sizes]
    periods: list[int | str] = sorted({*_powers(1, scenario.iterations // 2), schedule.sync_period} - {NEVER})
    periods.append("never")
    variants += [Variant(f"sync_period {p}", BASE, here | {f"{own}.sync_period": p}, "sync_period") for p in periods]
    return variants


def learn(scenario: Scenario, algorithm: str, every: int, progress: Progress | None) -> dict[str, Any]:
    """One run, as plain data, wherever it is made."""
    trained = train(scenario, algorithm, progress=progress, every=every)
    curve = [[point.time_ns, point.iterations, point.score] for point in trained.curve]
    return {"result": asdict(summarize(trained.trace)), "curve": curve}


def _compare(
    base: Scenario,
    variants: Sequence[Variant],
    seeds: int | Sequence[int],
    every: int | None,
    target: float | None,
    processes: int,
    progress: Progress | None,
) -> Comparison:
    chosen = check_seeds(base, seeds)
    if every is None:
        every = max(1, base.iterations // POINTS)
    if not 1 <= every <= base.iterations:
        raise InputError(f"every = {every}: must be from 1 to the number of iterations, {base.iterations}")
    score = check_target(base, target)
    jobs: dict[tuple[str, str], pool.Job] = {}  # runs that several variants have in common are made once
    plan = []
    for variant in variants:
        scenarios = [base.replace({**variant.changes, "seed": seed}) for seed in chosen]
        check_settings(scenarios[0], variant.algorithm)
        check_memory(scenarios[0], variant.algorithm, "simpy")
        keys = [(variant.algorithm, repr((s.settings_of(variant.algorithm), s.seed))) for s in scenarios]
        for key, scenario in zip(keys, scenarios, strict=True):
            jobs.setdefault(key, pool.Job(as_table(scenario), base.source, variant.algorithm, every))
        plan.append(keys)
    workload(base)  # complains before the first run of what would fail in all of them
    if processes > 1 and (available := available_bytes()) is not None:
        largest = max(needed_bytes(base, variant.algorithm, "simpy") for variant in variants)
        processes = min(processes, max(1, available // largest))
    found = dict(zip(jobs, _run(list(jobs.values()), processes, progress), strict=True))
    lines = [
        Line(variant, tuple(_learned(seed, found[key]) for seed, key in zip(chosen, keys, strict=True)))
        for variant, keys in zip(variants, plan, strict=True)
    ]
    if target is None:
        target = score.near(score.best(line.spread(lambda run: run.score)[0] for line in lines))
    return Comparison(base, chosen, every, target, tuple(lines), score)


def _run(jobs: Sequence[pool.Job], processes: int, progress: Progress | None) -> list[dict[str, Any]]:
    """The figures of all jobs, in their order. Raises WagmaError for the first that fails; the others end."""
    shares: defaultdict[int, float] = defaultdict(float)

    def report(index: int, share: float) -> None:
        shares[index] = share
        if progress is not None:
            progress(int(1000 * sum(shares.values())), 1000 * len(jobs))

    figures: list[dict[str, Any]] = [{}] * len(jobs)
    if processes < 1:
        raise InputError(f"processes = {processes}: must be at least 1")
    runs: Iterator[pool.Finished] = (
        pool.run_here(jobs, report) if processes == 1 else pool.run_processes(jobs, min(processes, len(jobs)), report)
    )
    with closing(runs):  # type: ignore[type-var]
        for finished in runs:
            if finished.figures is None:
                job = jobs[finished.index]
                raise WagmaError(f"{job.source}: {job.algorithm}, seed {job.table.get('seed', 0)}: {finished.error}")
            figures[finished.index] = finished.figures
    return figures


def cores() -> int:
    """How many processes can run at once here."""
    return len(os.sched_getaffinity(0))


def _learned(seed: int, figures: Mapping[str, Any]) -> Learned:
    points = tuple(Point(*point) for point in figures["curve"])
    return Learned(seed, Result(**figures["result"]), points)


def check_target(base: Scenario, target: float | None) -> Score:
    """What the scenario's runs are judged by. Raises InputError if they train nothing, or none could reach the target."""
    if base.training.workload == "none":
        raise InputError(
            f'{base.source}: training.workload = "none": there is no score to compare; wagma simulate compares the timing alone'
        )
    score = score_of(base)
    if target is not None and (not math.isfinite(target) or (score.share and not 0 < target <= 1)):
        raise InputError(f"target = {target:g}: must be {'above 0 and at most 1' if score.share else 'a finite number'}")
    return score


def check_seeds(base: Scenario, seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Which seeds these are, or so many from the scenario's own on. Raises InputError unless they are different, at least one."""
    if isinstance(seeds, int) and seeds < 1:
        raise InputError(f"seeds = {seeds}: must be at least 1")
    chosen = tuple(range(base.seed, base.seed + seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"seeds = {','.join(map(str, chosen))}: must be different whole numbers, at least one")
    return chosen


def _powers(first: int, largest: int) -> list[int]:
    return [1 << k for k in range(largest.bit_length()) if first <= 1 << k <= largest]
