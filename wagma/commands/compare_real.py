"""`wagma compare --real`: trains on real ranks, once for each seed in a job of its own, with all algorithms one after the other."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagma import workloads
from wagma.commands.options import forwarded, trace_path
from wagma.errors import InputError, WagmaError
from wagma.progress import Progress
from wagma.real.launching.launch import require, run_ranks, under_mpiexec
from wagma.report.tables import SYNCHRONOUS
from wagma.scenario import Scenario, require_changing_groups
from wagma.trace import Trace, load_trace

if TYPE_CHECKING:
    from wagma.studies.compare import Comparison

#: Evaluations of a run, unless told otherwise: judging them comes after each run.
POINTS = 12


def compare_real(options: argparse.Namespace, scenario: Scenario) -> Comparison:
    """Run everything. Raises InputError for bad input, WagmaError if a job fails or `--limit` is over; the ranks have said why."""
    from wagma.studies.compare import algorithm_variants, check_seeds, check_target
    from wagma.studies.measured import compare_traces

    if under_mpiexec():
        raise InputError("wagma compare --real starts its ranks itself: run it without mpiexec")
    check_target(scenario, options.target)
    seeds = check_seeds(scenario, options.seeds)
    names = [variant.algorithm for variant in algorithm_variants(options.algorithms or "all")]
    every = max(1, scenario.iterations // POINTS) if options.every is None else options.every
    if not 1 <= every <= scenario.iterations:
        raise InputError(f"--every {every}: must be from 1 to the number of iterations, {scenario.iterations}")
    for name in names:
        require_changing_groups(scenario, name)
    workloads.require(scenario.training.workload)
    require()
    over = time.monotonic() + options.limit
    traces: dict[tuple[str, int], Trace] = {}
    label = f"training on {scenario.ranks} ranks"
    with tempfile.TemporaryDirectory(prefix="wagma-") as folder, Progress(label, options.quiet) as line:
        for number, seed in enumerate(seeds):
            file = Path(folder) / "run.jsonl"
            arguments = [*_arguments(options, scenario.ranks, names, every), "--seed", str(seed), "--trace", str(file)]
            left = max(1.0, over - time.monotonic())
            status = run_ranks(scenario.ranks, [*arguments, "--limit", f"{left:.0f}"], _share(line, number, len(seeds)))
            if status:
                raise WagmaError(f"compare: the ranks failed, with seed {seed}")
            for name in names:
                traces[name, seed] = load_trace(trace_path(str(file), name, scenario.ranks, several=len(names) > 1))
    # By algorithm: that is the order of lines.
    return compare_traces(scenario, {(a, s): traces[a, s] for a in names for s in seeds}, every, options.target)


def _share(line: Progress, number: int, jobs: int) -> Callable[[int, int, str], None]:
    """Progress of one job as part of all."""
    return lambda done, total, _text: line(number * total + done, jobs * total)


def _arguments(options: argparse.Namespace, ranks: int, names: Sequence[str], every: int) -> list[str]:
    """The job's command line: as this one's, for `wagma train`."""
    given = ["wagma", "train", options.scenario, "-n", str(ranks), "--algorithms", ",".join(names)]
    return [*given, *forwarded(options), "--every", str(every), "--no-digests", "-q"]


def figures(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each algorithm: means over seeds, with least and largest of the score; None where something does not apply."""
    from wagma.studies.measured import gain, gain_to_target

    synchronous, rows = comparison.line(SYNCHRONOUS), []
    for line in comparison.lines:
        mean, least, largest = line.spread(lambda run: run.score)
        stale = [run.result.staleness_max for run in line.runs if run.result.staleness_max is not None]
        fresh = [run.result.fresh_fraction for run in line.runs if run.result.fresh_fraction is not None]
        reached = line.reached(comparison.target)
        rows.append({
            "algorithm": line.variant.algorithm,
            "score": mean, "score_least": least, "score_largest": largest,
            "own_score": line.spread(lambda run: run.own_score)[0],
            "seconds": line.spread(lambda run: run.result.makespan_ns / 1e9)[0],
            "gain": gain(line, synchronous),
            "seconds_to_target": sum(reached) / len(reached) if reached else None,
            "reached_target": len(reached),
            "gain_to_target": gain_to_target(line, synchronous, comparison.target),
            "throughput": line.spread(lambda run: run.result.throughput)[0],
            "staleness": max(stale) if stale else None,
            "staleness_bound": line.runs[0].result.staleness_bound,
            "fresh_fraction": sum(fresh) / len(fresh) if fresh else None,
        })  # fmt: skip
    return rows


def below(comparison: Comparison) -> str:
    """What is said under the table."""
    score, bound = comparison.score, comparison.bound
    assert bound is not None
    shared = (
        "each rank has a core of its own" if bound.cores == comparison.scenario.ranks else f"they share {bound.cores} cores"
    )
    better = "more" if score.direction == "up" else "less"
    return (
        f"{score.name}: {score.basis}, at the end; {better} is better; judged every {comparison.every}"
        f" iterations\ngain: of throughput, and of time to the target, over {SYNCHRONOUS}; by what the ranks were seen to compute,"
        f" throughput can gain {bound.gain:.2f} at most ({shared})"
    )
