"""Simulate every combination of settings, in parallel, into one table.

A key takes several values with commas between, or as a TOML array: --set algorithm.group_size=2,4,8. All combinations of all keys,
--ranks, --seeds and --algorithms are run. A sweep that was interrupted goes on where it stopped when it is started
again; FILE.journal has what is done, and whatever a changed sweep has in common with it is not run twice.

On a cluster: mpiexec -n 4 python -m mpi4py.futures -m wagma sweep ... --mpi
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from typing import Any

from wagma.api import ENGINES
from wagma.commands.options import parse_ranks, toml_value
from wagma.errors import InputError
from wagma.progress import Progress
from wagma.report.rows import Row
from wagma.studies import pool
from wagma.studies.sweep import Point, Sweep, check_output, execute, journal_of, plan, processes
from wagma.text import number, table

#: How many failed points are named one by one.
MOST_FAILURES = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("scenario", metavar="SCENARIO", help="a TOML file, or a name that `wagma scenarios` lists")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="a dotted key of the scenario and its values; several times",
    )
    parser.add_argument("--algorithms", "--algorithm", metavar="A,B|all", default="all", help="which to run (default: all)")
    parser.add_argument("-n", "--ranks", type=parse_ranks, metavar="N,M", help="numbers of ranks (default: the scenario's)")
    parser.add_argument("--seeds", type=_seeds, metavar="N,M", help="seeds of the random draws (default: the scenario's)")
    parser.add_argument("--out", metavar="FILE", required=True, help="the table, .csv or .parquet (which needs pyarrow)")
    parser.add_argument("--jobs", type=_jobs, metavar="N", help="how many processes (default: one for each core)")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help=f"what runs it (default: {ENGINES[0]})")
    parser.add_argument("--mpi", action="store_true", help="run in the other ranks of an MPI job, see above")
    parser.add_argument("-q", "--quiet", action="store_true", help="no summary and no progress")


def run(options: argparse.Namespace) -> int:
    """Run all points that are not in the journal; exit status 1 if any of them failed."""
    check_output(options.out)
    settings = parse_lists(options.set)
    if options.mpi:
        if options.jobs is not None:
            raise InputError("--jobs: --mpi has as many processes as mpiexec started; give one of the two")
        pool.check_mpi()
    points = plan(options.scenario, settings, options.algorithms, options.ranks, options.seeds, options.engine)
    if not options.quiet:
        for line in dict.fromkeys(notes(points)):
            print(f"wagma: note: {line}", file=sys.stderr)
    runner = pool.run_mpi if options.mpi else processes(points, options.jobs)
    with Progress(f"sweeping {len(points)} points", options.quiet) as progress:
        done = execute(points, options.out, runner, progress)
    for failure in done.failures[:MOST_FAILURES]:
        print(f"wagma: point {failure.point}: {failure.error}", file=sys.stderr)
    if done.failures:
        print(
            f"wagma: error: {len(done.failures)} of {len(points)} points failed, so {options.out} was not written; the others are in "
            f"{journal_of(options.out)}, the same command runs those that failed again",
            file=sys.stderr,
        )
        return 1
    if not options.quiet:
        print(describe(done, options.out))
    return 0


def describe(done: Sweep, out: str) -> str:
    """The best settings of each algorithm on each number of ranks, on average over the seeds, and what was written."""
    several: dict[tuple[int, str], dict[str, list[Row]]] = {}
    for row in done.rows:
        runs = several.setdefault((row.result.ranks, row.result.algorithm), {})
        runs.setdefault(json.dumps(row.settings), []).append(row)
    unit, keys = done.rows[0].result.unit, list(done.rows[0].settings)
    lines = []
    for (ranks, algorithm), runs in several.items():
        best = max(runs.values(), key=_throughput)
        lines.append([str(ranks), algorithm, number(_throughput(best)), *(str(best[0].settings[key]) for key in keys)])
    text = f"{out}: {len(done.rows)} rows of {done.runs} different runs"
    if done.reused:
        text += f", {done.reused} of them from {journal_of(out).name}"
    return f"{table(['ranks', 'algorithm', f'best {unit}/s', *keys], lines)}\n{text}"


def _throughput(rows: Sequence[Row]) -> float:
    return sum(row.result.throughput for row in rows) / len(rows)


def notes(points: Sequence[Point]) -> list[str]:
    """Where a swept key means nothing, for the scenario gives an algorithm a value of its own."""
    found = []
    for point in points:
        own = point.scenario.table.get("algorithms", {}).get(point.algorithm, {})
        for key in point.settings:
            section, _, name = key.partition(".")
            if section == "algorithm" and name in own and f"algorithms.{point.algorithm}.{name}" not in point.settings:
                found.append(f"{key} does not vary {point.algorithm}, whose own {name} = {own[name]} the scenario sets")
    return found


def parse_lists(settings: Sequence[str]) -> dict[str, list[Any]]:
    """["a.b=1,2"] -> {"a.b": [1, 2]}. Raises InputError for what is no list of values under a dotted key."""
    lists: dict[str, list[Any]] = {}
    for setting in settings:
        key, separator, text = (part.strip() for part in setting.partition("="))
        if not separator or not all(part.strip() for part in key.split(".")):
            raise InputError(f"--set {setting}: must be KEY=A,B with a dotted key, for example algorithm.group_size=2,4,8")
        if key in lists:
            raise InputError(f"--set {setting}: {key} is given twice; give all its values at once, with commas between")
        lists[key] = values = _values(text)
        if not values or any(value == "" for value in values):
            raise InputError(f"--set {setting}: an empty {'value' if values else 'list'}; must be values with commas between")
    return lists


def _values(text: str) -> list[Any]:
    """The elements of a TOML array, or of what is one with brackets around it; else words with commas between."""
    for attempt in (text, f"[{text}]"):
        try:
            parsed = tomllib.loads(f"value = {attempt}")
        except tomllib.TOMLDecodeError:
            continue
        if len(parsed) == 1 and isinstance(parsed["value"], list):
            return parsed["value"]
    return [toml_value(part.strip()) for part in text.split(",")] if text else []


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: must be different whole numbers, at least 0, with commas between")
    return seeds


def _jobs(text: str) -> int:
    try:
        jobs = int(text)
    except ValueError:
        jobs = 0
    if not 1 <= jobs <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1 to 4096")
    return jobs
