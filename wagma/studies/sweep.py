"""Sweeps: a scenario at every combination of settings, in parallel, resumable, as one table. `wagma.sweep` and `wagma sweep`.

A run is known by a digest of all that its figures depend on: the resolved scenario (contents of a CSV of compute times included),
the algorithm with the settings that it reads, and the program with the libraries that it computes with. Runs with the same digest
are made once: sweeping the group size, an algorithm without groups runs a single time and has its figures in every row.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from wagma import workloads
from wagma.algorithms import ALGORITHMS, specification
from wagma.api import check_settings, choose_engine, select_algorithms
from wagma.errors import InputError
from wagma.report.rows import FIGURES, FIXED, Row, file_format, write_rows
from wagma.results import Result
from wagma.scenario import Scenario, as_table, changed, load_table, read
from wagma.sim.capacity import available_bytes, check_memory, needed_bytes
from wagma.studies import pool
from wagma.studies.journal import SUFFIX, Journal

#: A table of more rows is a mistake in the options, or asks for a program of one's own.
MOST_POINTS = 100_000

#: Whose version is part of a run's digest; where ranks train, also what the workload needs.
LIBRARIES = ("numpy", "scipy", "simpy")

Progress = Callable[[int, int], None]
Settings = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Point:
    """One row to be: the values of the varied keys, and the run that they amount to.

    engine: "simpy" or "fast", as far as can be seen beforehand. asked: what was asked for.
    """

    settings: Mapping[str, Any]
    scenario: Scenario
    algorithm: str
    digest: str
    engine: str
    asked: str

    def __str__(self) -> str:
        return _describe({**self.settings, "ranks": self.scenario.ranks, "seed": self.scenario.seed}, self.algorithm)

    @property
    def cost(self) -> int:
        """What a run takes, roughly and in no unit: for the order of runs, and the time left."""
        return self.scenario.ranks * self.scenario.iterations


@dataclass(frozen=True, slots=True)
class Failure:
    """A point that could not be run, and why, in one line."""

    point: Point
    error: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep came to. rows: in the order of the combinations, without those that failed. reused: runs taken from the journal."""

    rows: list[Row]
    failures: list[Failure]
    runs: int
    reused: int


def sweep(
    scenario: str | Path | Scenario,
    settings: Settings,
    algorithms: str | Sequence[str] = "all",
    ranks: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    in_process: bool = False,
    engine: str = "auto",
) -> Sweep:
    """Simulate every combination of settings, numbers of ranks, seeds and algorithms.

    Args:
        scenario: a file, the name of a packaged one, or one in memory.
        settings: dotted keys and the values that each takes, {"algorithm.group_size": [2, 4, 8]}.
        algorithms: as `wagma.simulate` has it.
        ranks: in place of the scenario's own.
        seeds: in place of the scenario's own.
        out: a .csv or .parquet file for the table. Beside it stays a journal (`FILE.journal`), from which an interrupted sweep goes
            on, and from which a larger one takes what it has in common with it.
        jobs: how many processes; all cores unless given.
        progress: called as progress(done, total) while it runs; the unit is a rank's iteration.
        in_process: run here, one after the other, with the algorithms that this program has registered itself.
        engine: as `wagma.simulate` has it.

    Raises:
        InputError: any of the points is not valid; nothing has been run then.
    """
    points = plan(scenario, settings, algorithms, ranks, seeds, engine)
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs = {jobs}: must be at least 1")
    how: Runner = pool.run_here if in_process else processes(points, jobs)
    return execute(points, out, how, progress)


Runner = Callable[[Sequence[pool.Job], pool.Report], Iterator[pool.Finished]]


def processes(points: Sequence[Point], jobs: int | None) -> Runner:
    """Run in so many processes, or in as many as there are cores and fit in memory.

    Raises InputError if so many do not fit, or an algorithm is one that other processes do not know.
    """
    for algorithm in {point.algorithm for point in points}:
        if not specification(algorithm).run.__module__.startswith("wagma."):
            raise InputError(f"algorithm {algorithm!r}: registered in this program only; give in_process=True to run it here")
    available = available_bytes()
    largest = max(needed_bytes(point.scenario, point.algorithm, point.engine) for point in points)
    fitting = len(points) if available is None else max(1, available // largest)
    if jobs is not None and fitting < min(jobs, len(points)):
        raise InputError(f"jobs = {jobs}: so many of the largest points do not fit in memory at a time; at most {fitting} do")
    count = jobs or min(fitting, len(os.sched_getaffinity(0)))
    return lambda work, report: pool.run_processes(work, count, report)


def plan(
    scenario: str | Path | Scenario,
    settings: Settings,
    algorithms: str | Sequence[str] = "all",
    ranks: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    engine: str = "auto",
) -> list[Point]:
    """All points, in order, checked, that they fit in memory included. Raises InputError, naming the point, if any is not valid."""
    table, source = (scenario.table, scenario.source) if isinstance(scenario, Scenario) else load_table(scenario)
    axes = _axes(settings, ranks, seeds)
    chosen = select_algorithms(algorithms)
    count = len(chosen)
    for values in axes.values():
        count *= len(values)
    if count > MOST_POINTS:
        raise InputError(f"sweep of {count:,} points: must be at most {MOST_POINTS:,}")
    points, available = [], available_bytes()
    for values in itertools.product(*axes.values()):
        here = dict(zip(axes, values, strict=True))
        try:
            one = read(changed(table, _outer_first(here), source), source)
            engines = [_engine(one, algorithm, engine, available) for algorithm in chosen]
        except InputError as error:
            raise InputError(f"point {_describe(here)}: {error}") from error
        varied = {key: value for key, value in here.items() if key not in FIXED}
        same = _shared_part(one)
        points += [
            Point(varied, one, algorithm, _digest(one, algorithm, its_own, same), its_own, engine)
            for algorithm, its_own in zip(chosen, engines, strict=True)
        ]
    return points


def _engine(scenario: Scenario, algorithm: str, engine: str, available: int | None) -> str:
    """Which engine a point runs on. available: bytes of memory; None: nobody knows.

    Raises InputError if it cannot run, or does not fit, MissingDependencyError if it trains and torch is not there.
    """
    check_settings(scenario, algorithm)
    if scenario.training.workload != "none":
        workloads.require(scenario.training.workload)
    chosen = choose_engine(scenario, algorithm, engine)
    if available is not None and needed_bytes(scenario, algorithm, chosen) > available:
        check_memory(scenario, algorithm, chosen)
    return chosen


def execute(points: Sequence[Point], out: str | Path | None, runner: Runner, progress: Progress | None = None) -> Sweep:
    """Run what is not in the journal yet, and write the table unless a point failed. Raises InputError if `out` cannot be written."""
    if out is not None:
        check_output(out)
    with ExitStack() as stack:
        journal = None if out is None else stack.enter_context(Journal(journal_of(out)))
        figures: dict[str, dict[str, Any]] = {} if journal is None else journal.entries
        runs = {point.digest: point for point in points}
        reused = sum(digest in figures for digest in runs)
        # The longest first: so the last ones to end are short, and all cores have something to do.
        work = sorted((p for p in runs.values() if p.digest not in figures), key=lambda p: -p.cost)
        tally = _Tally(work, sum(p.cost for p in runs.values()), progress)
        failed: dict[str, str] = {}
        jobs = list(_jobs(work))
        if jobs:
            for finished in stack.enter_context(closing(_generator(runner(jobs, tally)))):
                digest = work[finished.index].digest
                if finished.figures is None:
                    failed[digest] = finished.error
                elif journal is None:
                    figures[digest] = finished.figures
                else:
                    journal.add(digest, finished.figures)
    rows = [_row(point, figures[point.digest]) for point in points if point.digest not in failed]
    failures = [Failure(point, failed[point.digest]) for point in points if point.digest in failed]
    if out is not None and not failures:
        write_rows(out, [row.as_row() for row in rows])
    return Sweep(rows, failures, len(runs), reused)


def _jobs(work: Sequence[Point]) -> Iterator[pool.Job]:
    """What runs the points. A CSV of compute times goes along as it was read when the digest was made: it may change meanwhile."""
    once: dict[str, Any] = {}  # most points have the same times, which are long
    for point in work:
        scenario, table = point.scenario, dict(point.scenario.table)
        if scenario.compute.measured is not None:
            key = _measured(scenario)
            if key not in once:
                once[key] = as_table(scenario)["compute"]
            table["compute"] = once[key]
        yield pool.Job(table, scenario.source, point.algorithm, engine=point.asked)


def check_output(out: str | Path) -> None:
    """Raise InputError, or MissingDependencyError, if a table cannot be written there."""
    file_format(out)
    path = Path(out)
    if path.is_dir():
        raise InputError(f"table {str(out)!r}: cannot be written: a folder, not a file")
    if not path.parent.is_dir():
        raise InputError(f"table {str(out)!r}: cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"table {str(out)!r}: cannot be written: no permission to write there")


def journal_of(out: str | Path) -> Path:
    """Where the journal of a table is."""
    path = Path(out)
    return path.with_name(path.name + SUFFIX)


class _Tally:
    """Adds up how far each run is; the runner's `report`."""

    def __init__(self, work: Sequence[Point], total: int, progress: Progress | None) -> None:
        self._costs = [point.cost for point in work]
        self._done = [0.0] * len(work)
        self._total = total
        self._sum = total - float(sum(self._costs))
        self._progress = progress
        self._tell()  # the pace is that of what is yet to do

    def __call__(self, index: int, share: float) -> None:
        done = share * self._costs[index]
        self._sum += done - self._done[index]
        self._done[index] = done
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(int(self._sum), self._total)


def _generator(runs: Iterator[pool.Finished]) -> Any:
    """For `closing`: a runner is a generator, and ends its processes when it is closed."""
    return runs


def _row(point: Point, figures: Mapping[str, Any]) -> Row:
    known = {field.name for field in fields(Result)}
    result = Result(**{name: value for name, value in figures.items() if name in known})
    settings = {key: value for key, value in point.settings.items() if key not in FIGURES}
    return Row(point.scenario.name, settings, point.scenario.seed, result)


def _axes(settings: Settings, ranks: Sequence[int] | None, seeds: Sequence[int] | None) -> dict[str, Sequence[Any]]:
    axes: dict[str, Sequence[Any]] = {}
    for key, values in (("ranks", ranks), *settings.items(), ("seed", seeds)):
        if values is None:
            continue
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise InputError(f"sweep: {key} = {values!r}: must be a list of values")
        if not values:
            raise InputError(f"sweep: {key}: no values; must be at least one")
        if key in axes:
            raise InputError(f"sweep: {key}: given twice")
        for number, value in enumerate(values):
            if any(_same(value, other) for other in values[:number]):
                raise InputError(f"sweep: {key}: {value!r} is there twice; each value must be there once")
        axes[key] = values
    return axes


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _outer_first(here: Mapping[str, Any]) -> dict[str, Any]:
    """A whole section first, then keys inside it."""
    return dict(sorted(here.items(), key=lambda change: change[0].count(".")))


def _describe(values: Mapping[str, Any], algorithm: str = "") -> str:
    parts = [f"{key}={value if isinstance(value, str) else json.dumps(value, default=str)}" for key, value in values.items()]
    return ", ".join([*parts, algorithm] if algorithm else parts) or "of the scenario itself"


def _shared_part(scenario: Scenario) -> str:
    """Digest of what all algorithms have in common: the scenario with what it was read from, and the program."""
    unread = ("description", "algorithm", "algorithms", "calibration")
    table = {key: value for key, value in scenario.table.items() if key not in unread}
    if scenario.compute.measured is not None:
        table["compute"] = _measured(scenario)
    versions = [_version(name) for name in LIBRARIES]
    if scenario.training.workload != "none":
        # Python's, too: its own sources are what the workload text reads.
        versions += [platform.python_version(), *map(_version, workloads.REGISTRY[scenario.training.workload].needs.values())]
    return _sha256([table, _program(), versions])


def _measured(scenario: Scenario) -> str:
    """Digest of compute times that were read from a file, wherever it is."""
    measured = scenario.compute.measured
    assert measured is not None
    return f"{measured.shape} {hashlib.sha256(measured.tobytes()).hexdigest()}"


def _digest(scenario: Scenario, algorithm: str, engine: str, shared_part: str) -> str:
    """Of all that the figures of a run depend on."""
    known = specification(algorithm)
    others = {key for one in ALGORITHMS.values() for key in one.keys} - set(known.keys)
    settings = scenario.settings_of(algorithm)
    # The schedule has group size and period as far as the algorithm uses them; a key of another algorithm changes nothing.
    own = {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if field.name not in others | {"group_size", "sync_period"}
    }
    plan = [known.collectives, known.value, known.delayed, known.keys, repr(scenario.schedule(algorithm))]
    return _sha256([shared_part, algorithm, engine, own, plan, _source(algorithm)])


def _sha256(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _program() -> str:
    """Digest of this package's Python files: figures of another wagma are not reused."""
    here = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(str(path.relative_to(here)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(library: str) -> str:
    """Of an installed library, "" without it: another one may draw or add up differently."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _source(algorithm: str) -> list[str]:
    """Of generators that are the user's own: the files that they are in, helpers included, and what they were made with.

    Files that those import are not seen.
    """
    known = specification(algorithm)
    return [_own_source(algorithm, run) for run in (known.run, known.companion) if run is not None]


def _own_source(algorithm: str, run: Callable[..., Any]) -> str:
    if run.__module__.startswith("wagma."):
        return f"{run.__module__}.{run.__qualname__}"
    try:
        lines, _ = inspect.findsource(run)
        return "".join(lines) + repr(
            (run.__qualname__, getattr(run, "__defaults__", None), inspect.getclosurevars(run).nonlocals)
        )
    except (OSError, TypeError) as error:
        raise InputError(
            f"algorithm {algorithm!r}: its source, which a sweep has to compare, cannot be read: {error}"
        ) from error
