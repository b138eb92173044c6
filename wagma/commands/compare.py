"""Compare algorithms by their accuracy along simulated time.

The scenario's ranks train for real, in virtual time, once for each algorithm and seed. What is evaluated is the mean of all ranks'
models. With --ablations it is WAGMA-SGD that is compared with itself, one thing changed at a time: no group collectives, fixed groups,
other group sizes and sync periods.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from wagma.commands.options import (
    add_output_options,
    add_scenario_options,
    check_writable,
    load_scenarios,
    prints_table,
    write_text,
)
from wagma.errors import InputError
from wagma.progress import Progress
from wagma.report.accuracy import Curve, draw
from wagma.report.style import check_picture
from wagma.report.tables import number, percent, seconds, table
from wagma.scenario import Scenario

if TYPE_CHECKING:
    from wagma.studies.compare import Comparison, Line

MOST_SEEDS = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("-n", "--ranks", type=int, metavar="N", help="number of ranks")
    add_scenario_options(parser, None)
    parser.add_argument(
        "--seeds", type=_seeds, default=3, metavar="N|A,B", help="how many, from the scenario's on, or which (default: 3)"
    )
    parser.add_argument("--ablations", action="store_true", help="compare WAGMA-SGD with itself, one thing changed at a time")
    parser.add_argument("--target", type=float, metavar="SHARE", help="accuracy to tell the time to (default: best less 0.05)")
    parser.add_argument(
        "--every", type=int, metavar="N", help="iterations between evaluations (default: a two-hundredth of all)"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw accuracy against simulated time (.png, .pdf or .svg)")
    parser.add_argument("--jobs", type=int, metavar="N", help="how many processes (default: one for each core)")
    add_output_options(parser)


def run(options: argparse.Namespace) -> int:
    """Train with all of them; then picture, table and JSON."""
    check_writable(json=options.json)
    if options.plot is not None:
        check_picture(options.plot)
    if options.ablations and (options.algorithms is not None or options.plot):
        raise InputError(
            f"--ablations: gives a table of wagma_sgd; not together with --{'plot' if options.algorithms is None else 'algorithms'}"
        )
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: must be at least 1")
    scenario = load_scenarios(options, None if options.ranks is None else [options.ranks])[0]
    comparison = _compare(options, scenario)
    if options.plot is not None:
        title = f"{scenario.name}, {scenario.ranks} ranks"
        draw([_curve(line) for line in comparison.lines], options.plot, title, len(comparison.seeds), comparison.target)
    if prints_table(options):
        print(describe(comparison, options.verbose))
    write_text(options.json, comparison.to_json())
    return 0


def _compare(options: argparse.Namespace, scenario: Scenario) -> Comparison:
    from wagma.studies.compare import ablate, compare, cores

    settings: dict[str, Any] = {
        "seeds": options.seeds,
        "every": options.every,
        "target": options.target,
        "processes": cores() if options.jobs is None else options.jobs,
    }
    with Progress(f"training in virtual time on {scenario.ranks} ranks", options.quiet) as progress:
        if options.ablations:
            return ablate(scenario, progress=progress, **settings)
        return compare(scenario, "all" if options.algorithms is None else options.algorithms, progress=progress, **settings)


def describe(comparison: Comparison, verbose: bool = False) -> str:
    """The comparison as text: a table, or one for each part of the ablations."""
    scenario, seeds = comparison.scenario, comparison.seeds
    often = "in every iteration" if comparison.every == 1 else f"every {comparison.every} iterations"
    several = "" if len(seeds) == 1 else f", mean (least to largest) of {len(seeds)} seeds"
    text = [
        f"{scenario.name}: {scenario.ranks} ranks train in virtual time, {scenario.iterations} iterations{several}",
        _table(comparison, verbose),
        f"accuracy: of the mean of all models, held-out data, at the end; evaluated {often}",
    ]
    return "\n".join(text)


def _table(comparison: Comparison, verbose: bool) -> str:
    target, unit = comparison.target, comparison.scenario.work_unit
    header = ["what", "accuracy", f"time to {100 * target:g} %", "time", f"{unit}/s", "staleness", "fresh", "own model"]
    if verbose:
        header += ["took"]
    rows = []
    for line in comparison.lines:
        row = [
            line.variant.label,
            _accuracy(line),
            _time_to(line, target),
            seconds(line.spread(lambda run: run.result.makespan_ns / 1e9)[0]),
            number(line.spread(lambda run: run.result.throughput)[0]),
            _staleness(line),
            _fresh(line),
            percent(line.spread(lambda run: run.own_accuracy)[0]),
        ]
        if verbose:
            row.append(seconds(line.spread(lambda run: run.result.wall_s)[0]))
        rows.append(row)
    return table(header, rows)


def _accuracy(line: Line) -> str:
    mean, least, largest = line.spread(lambda run: run.accuracy)
    return percent(mean) if len(line.runs) == 1 else f"{percent(mean)} ({100 * least:.1f} to {100 * largest:.1f})"


def _time_to(line: Line, target: float) -> str:
    """The mean of the runs that reach the target, and how many do if not all."""
    reached = line.reached(target)
    if not reached:
        return "never"
    mean = seconds(sum(reached) / len(reached))
    return mean if len(reached) == len(line.runs) else f"{mean} ({len(reached)} of {len(line.runs)})"


def _staleness(line: Line) -> str:
    """The largest one seen / what bounds it; nothing for algorithms that have no stale contributions."""
    seen = [run.result.staleness_max for run in line.runs if run.result.staleness_max is not None]
    if not seen:
        return ""
    bound = line.runs[0].result.staleness_bound
    return f"{max(seen)} / {'unbounded' if bound is None else bound}"


def _fresh(line: Line) -> str:
    shares = [run.result.fresh_fraction for run in line.runs if run.result.fresh_fraction is not None]
    return percent(sum(shares) / len(shares)) if shares else ""


def _curve(line: Line) -> Curve:
    """Mean time and accuracy of the k-th evaluation, which comes after equally many iterations in every run."""
    points = list(zip(*(run.curve for run in line.runs), strict=True))
    times = [sum(point.time_ns for point in same) / len(same) / 1e9 for same in points]
    accuracies = [[point.accuracy for point in same] for same in points]
    means = [sum(values) / len(values) for values in accuracies]
    return Curve(line.variant.algorithm, times, means, [min(v) for v in accuracies], [max(v) for v in accuracies])


def _seeds(text: str) -> int | list[int]:
    """ "3" -> 3, "1,2" -> [1, 2]. Raises ArgumentTypeError."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and 1 <= numbers[0] <= MOST_SEEDS:
        return numbers[0]
    if len(numbers) > 1 and min(numbers) >= 0 and len(set(numbers)) == len(numbers):
        return numbers
    raise argparse.ArgumentTypeError(
        f"{text!r}: must be how many, 1 to {MOST_SEEDS}, or different whole numbers, at least 0, with commas between"
    )
