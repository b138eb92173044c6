"""Drive the protocol's machine through random runs with hostile timing.

Each seed draws a case (1 to 64 ranks, any group size, syncs, initiators, gradients, uneven ends) and its timing: delays over more than six
orders of magnitude, messages that overtake each other, slow progress threads that handle what came in batches, ranks that are paused for
many versions. The C++ machine runs it twice, under a scheduler that decides every instant; all promises are checked at every
event, and both runs have to be the same bytes. A sample of the seeds goes through the Python machines, which have to answer the same,
and through the simulator.

A failure prints its seed, which runs it again (--seed), the commit, and a shrunk trace.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time

from wagma.commands.options import add_output_options, check_writable, prints_table, write_text
from wagma.errors import InputError
from wagma.progress import Progress
from wagma.proof.fuzzing import Failure, Report, fuzz

SEEDS = 1000
SIMULATE_EVERY = 250
MOST_LINES = 40  # of a trace; shrunk ones have fewer, but for some of the simulator


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--seeds", type=int, metavar="N", help=f"how many seeds (default: {SEEDS})")
    parser.add_argument("--first", type=int, metavar="N", help="the first of them (default: 0)")
    parser.add_argument("--seed", type=int, metavar="N", help="this one alone, in the simulator too")
    parser.add_argument(
        "--simulate-every",
        type=int,
        metavar="N",
        default=SIMULATE_EVERY,
        help=f"seeds that N divides go through the Python machines and the simulator, too; 0: none (default: {SIMULATE_EVERY})",
    )
    parser.add_argument(
        "--mutate", metavar="NAME", default="none", help="plant a defect, to see it found; the simulator has none"
    )
    add_output_options(parser, columns=False)


def run(options: argparse.Namespace) -> int:
    """Fuzz; status 1 if something was found."""
    check_writable(json=options.json)
    first, seeds, every = _range(options)
    start = time.monotonic()
    with contextlib.ExitStack() as lines:
        report = fuzz(first, seeds, every, options.mutate, lambda label: lines.enter_context(Progress(label, options.quiet)))
    seconds = time.monotonic() - start
    if prints_table(options) or (report.failure is not None and options.json != "-"):
        print(describe(report, seconds, options.mutate))
    if options.json is not None:
        write_text(options.json, json.dumps(report.as_table() | {"mutation": options.mutate, "seconds": seconds}, indent=2))
    return 0 if report.failure is None else 1


def _range(options: argparse.Namespace) -> tuple[int, int, int]:
    """First seed, how many, and how many of them from one in the simulator to the next. Raises InputError."""
    every = 0 if options.mutate != "none" and options.simulate_every > 0 else options.simulate_every
    if options.seed is not None:
        for name in ("seeds", "first"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name} {getattr(options, name)}: --seed {options.seed} is one seed; allowed: one of both")
        if options.seed < 0:
            raise InputError(f"--seed {options.seed}: must be at least 0")
        return options.seed, 1, min(every, 1)
    seeds = SEEDS if options.seeds is None else options.seeds
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: must be at least 1")
    if options.first is not None and options.first < 0:
        raise InputError(f"--first {options.first}: must be at least 0")
    return options.first or 0, seeds, every


def describe(report: Report, seconds: float, mutation: str) -> str:
    """The report as text."""
    counts, share = report.counts, report.share
    again = f"{report.seeds:,} seeds from {report.first} on, each twice: {counts['events']:,} events in each of both"
    late = (
        f"late {share('late', 'completions'):.1%}, by {counts['behind']} versions at most, by 8 or more {counts['far']:,} times"
    )
    wide = f"delays over six orders of magnitude in {counts['wide'] / report.seeds:.1%} of runs"
    batches = f"events handled in batches {share('batched', 'events'):.1%}"
    lines = [
        f"{again}; wagma {report.commit}",
        f"  {seconds:.1f} s; digest of all events and outputs {report.digest}",
        f"  arrivals {late}; executions passive {share('passive', 'starts'):.1%}",
        f"  activations overtaken {share('overtaken', 'activations'):.1%}; {batches}; {wide}; {counts['quiet']:,} quiet states",
        f"  {report.simulated:,} of the seeds by the Python machines, too, output for output, and in the simulator, each twice",
    ]
    if report.failure is None:
        return "\n".join([*lines, "all promises held; all pairs of runs were the same bytes"])
    return "\n".join([*lines, *_failure(report.failure, mutation)])


def _failure(failure: Failure, mutation: str) -> list[str]:
    planted = "" if mutation == "none" else f" --mutate {mutation}"
    where = {"native": "", "twins": " in the Python machines", "simulator": " in the simulator"}[failure.world]
    again = "again, unless what differs then does not" if failure.violation.startswith("determinism") else "again"
    lines = [
        f"seed {failure.seed} fails{where} after {failure.events:,} events: {failure.violation}",
        f"  case: {failure.case}",
        f"  {again}: wagma fuzz --seed {failure.seed}{planted}",
        f"shrunk in {failure.attempts:,} attempts to {len(failure.trace)} events: {failure.shrunk_violation}",
        f"  case: {failure.shrunk_case}",
    ]
    lines += [f"  {line}" for line in failure.trace[:MOST_LINES]]
    if len(failure.trace) > MOST_LINES:
        lines.append(f"  and {len(failure.trace) - MOST_LINES} more; --json has all of them")
    return lines
