"""Simulate algorithms on a scenario.

If the scenario names a workload ([training]), the ranks train for real in virtual time; --set training.workload=none leaves the
timing alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from wagma.api import ENGINES, figures, plan, select_algorithms
from wagma.api import run as simulate
from wagma.commands.options import (
    add_run_options,
    check_writable,
    load_scenarios,
    overview,
    parse_ranks,
    prints_table,
    trace_path,
    write_json,
)
from wagma.progress import Progress
from wagma.report.paper import published
from wagma.report.tables import results_table
from wagma.results import Result, summarize
from wagma.scenario import Scenario


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "-n", "--ranks", type=parse_ranks, metavar="N,M", help="numbers of ranks to simulate, one after the other"
    )
    add_run_options(parser, engines=ENGINES, algorithms="all")


def run(options: argparse.Namespace) -> int:
    """Simulate every algorithm for every number of ranks."""
    check_writable(trace=options.trace, json=options.json)
    scenarios = load_scenarios(options, options.ranks)
    runs = list(plan(scenarios, select_algorithms(options.algorithms), options.engine, traces=options.trace is not None))
    results = []
    for scenario, algorithm in runs:
        with Progress(f"simulating {algorithm} on {scenario.ranks} ranks", options.quiet) as progress:
            if options.trace is None:
                results.append(figures(scenario, algorithm, options.engine, progress))
                continue
            trace = simulate(scenario, algorithm, digests=True, progress=progress)
        trace.write(trace_path(options.trace, algorithm, scenario.ranks, several=len(runs) > 1))
        results.append(summarize(trace))
    if prints_table(options):
        print(describe(scenarios, results, options.verbose))
    write_json(options.json, scenarios[0].name, results)
    return 0


def describe(scenarios: Sequence[Scenario], results: Sequence[Result], verbose: bool = False) -> str:
    """The results as text, beside the paper's where it has any for this scenario."""
    paper = published(scenarios[0])
    text = [overview(scenarios[0], "simulated"), results_table(results, paper.points, verbose)]
    if any((result.ranks, result.algorithm) in paper.points for result in results):
        text.append(f"paper: {paper.citation}")
    return "\n".join(text)
