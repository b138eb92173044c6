"""Compare algorithms by their score along time.

The scenario's ranks train in virtual time, once for each algorithm and seed; with --real they are real ranks, and time is what passes. What
is evaluated is the mean of all ranks' models. With --ablations it is WAGMA-SGD that is compared with itself, one thing changed at a time:
no group collectives, fixed groups, other group sizes and sync periods.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from wagma.commands.compare_real import below, compare_real, figures
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
from wagma.report.rows import Row, file_format, write_rows
from wagma.report.style import check_picture
from wagma.scenario import Scenario
from wagma.scores import Score
from wagma.text import bounded, markdown_table, number, percent, seconds, table

if TYPE_CHECKING:
    from wagma.studies.compare import Comparison, Line

MOST_SEEDS = 1000
LIMIT_S, MOST_LIMIT_S = 1800.0, 1e6


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("-n", "--ranks", type=int, metavar="N", help="number of ranks")
    add_scenario_options(parser, None)
    parser.add_argument(
        "--seeds", type=_seeds, default=3, metavar="N|A,B", help="how many, from the scenario's on, or which (default: 3)"
    )
    parser.add_argument("--real", action="store_true", help="train on real ranks, started here, one run after the other")
    parser.add_argument("--ablations", action="store_true", help="compare WAGMA-SGD with itself, one thing changed at a time")
    parser.add_argument(
        "--target", type=float, metavar="SCORE",
        help="score to tell the time to (default: a margin short of the best; --real: the worst end of allreduce_sgd)",
    )  # fmt: skip
    parser.add_argument(
        "--every",
        type=int,
        metavar="N",
        help="iterations between evaluations (default: a two-hundredth of all; --real: a twelfth)",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the score against time (.png, .pdf or .svg)")
    parser.add_argument("--jobs", type=int, metavar="N", help="how many processes (default: one for each core)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help=f"for all of --real (default: {LIMIT_S:g})")
    parser.add_argument("--csv", metavar="FILE", help="write a row for each run (.csv or .parquet)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    add_output_options(parser)


def run(options: argparse.Namespace) -> int:
    """Train with all of them; then picture, tables and JSON."""
    check_writable(json=options.json, csv=options.csv)
    if options.plot is not None:
        check_picture(options.plot)
    _check(options)
    scenario = load_scenarios(options, None if options.ranks is None else [options.ranks])[0]
    comparison = compare_real(options, scenario) if options.real else _compare(options, scenario)
    if options.plot is not None:
        clock = "time" if options.real else "simulated time"
        title = f"{scenario.name}, {scenario.ranks} ranks"
        curves = [_curve(line) for line in comparison.lines]
        draw(curves, options.plot, title, len(comparison.seeds), comparison.target, comparison.score, clock)
    if prints_table(options):
        print(describe(comparison, options.verbose, options.markdown))
    if options.csv is not None:
        write_rows(options.csv, rows_of(comparison))
    write_text(options.json, comparison.to_json())
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    if options.ablations and (options.algorithms is not None or options.plot or options.real):
        other = "real" if options.real else "plot" if options.algorithms is None else "algorithms"
        raise InputError(f"--ablations: gives a table of wagma_sgd in virtual time; not together with --{other}")
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: must be at least 1")
    if options.jobs not in (None, 1) and options.real:
        raise InputError(f"--jobs {options.jobs}: with --real one run has the machine at a time")
    if options.limit is not None and not 0 < options.limit <= MOST_LIMIT_S:
        raise InputError(f"--limit {options.limit:g}: must be seconds, above 0 and at most {MOST_LIMIT_S:g}")
    if options.limit is not None and not options.real:
        raise InputError(f"--limit {options.limit:g}: only with --real")
    if options.limit is None:
        options.limit = LIMIT_S
    if options.seed is not None and not isinstance(options.seeds, int):
        raise InputError(f"--seed {options.seed}: --seeds {','.join(map(str, options.seeds))} says which; give one of the two")
    if options.csv is not None:
        file_format(options.csv)


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


def describe(comparison: Comparison, verbose: bool = False, markdown: bool = False) -> str:
    """The comparison as text: a table, or one for each part of the ablations."""
    scenario, seeds = comparison.scenario, comparison.seeds
    several = "" if len(seeds) == 1 else f", mean (least to largest) of {len(seeds)} seeds"
    where = "train in virtual time" if comparison.bound is None else "train for real"
    head = f"{scenario.name}: {scenario.ranks} ranks {where}, {scenario.iterations} iterations{several}"
    text = [head, *([""] if markdown else []), _table(comparison, verbose, markdown), *([""] if markdown else [])]
    if comparison.bound is not None:
        return "\n".join([*text, below(comparison)])
    often = "in every iteration" if comparison.every == 1 else f"every {comparison.every} iterations"
    return "\n".join([*text, f"{comparison.score.name}: {comparison.score.basis}, at the end; evaluated {often}"])


def _table(comparison: Comparison, verbose: bool, markdown: bool) -> str:
    target, unit, score = comparison.target, comparison.scenario.work_unit, comparison.score
    header = [
        "what", score.name, f"time to {score.show_target(target)}", "gain to it", "time", f"{unit}/s", "gain", "staleness",
        "fresh", "own model",
    ]  # fmt: skip
    verbose = verbose and comparison.bound is None  # what a simulation took to compute; a real run took its time
    header += ["took"] if verbose else []
    rows = []
    for line, row in zip(comparison.lines, figures(comparison), strict=True):
        cells = [
            line.variant.label,
            _score(line, score),
            _time_to(line, target),
            _gain(row["gain_to_target"], comparison),
            seconds(row["seconds"]),
            number(row["throughput"]),
            _gain(row["gain"], comparison),
            "" if row["staleness"] is None else bounded(row["staleness"], row["staleness_bound"]),
            percent(row["fresh_fraction"]),
            score.show(row["own_score"]),
        ]
        if verbose:
            cells.append(seconds(line.spread(lambda run: run.result.wall_s)[0]))
        rows.append(cells)
    return (markdown_table if markdown else table)(header, rows)


def _gain(value: float | None, comparison: Comparison) -> str:
    """Of real runs only: in virtual time it is a question of the model, which `wagma simulate` answers."""
    return "" if value is None or comparison.bound is None else f"{value:.2f}"


def _score(line: Line, score: Score) -> str:
    mean, least, largest = line.spread(lambda run: run.score)
    return (
        score.show(mean)
        if len(line.runs) == 1
        else f"{score.show(mean)} ({score.show_short(least)} to {score.show_short(largest)})"
    )


def _time_to(line: Line, target: float) -> str:
    """The mean of the runs that reach the target, and how many do if not all."""
    reached = line.reached(target)
    if not reached:
        return "never"
    mean = seconds(sum(reached) / len(reached))
    return mean if len(reached) == len(line.runs) else f"{mean} ({len(reached)} of {len(line.runs)})"


def rows_of(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each run: what a sweep's table has, and the time to the target."""
    name, target = comparison.scenario.name, comparison.target
    return [
        Row(name, {"what": line.variant.label}, run.seed, run.result).as_row()
        | {"target": target, "seconds_to_target": run.seconds_to(target)}
        for line in comparison.lines
        for run in line.runs
    ]


def _curve(line: Line) -> Curve:
    """Mean time and score of the k-th evaluation, which comes after equally many iterations in every run."""
    points = list(zip(*(run.curve for run in line.runs), strict=True))
    times = [sum(point.time_ns for point in same) / len(same) / 1e9 for same in points]
    scores = [[point.score for point in same] for same in points]
    means = [sum(values) / len(values) for values in scores]
    return Curve(line.variant.algorithm, times, means, [min(v) for v in scores], [max(v) for v in scores])


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
