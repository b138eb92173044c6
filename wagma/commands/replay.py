"""Run a recorded training run again, in the simulator, to the same bits.

What the world decided (who was late, which sum a late rank got, which average came first) is taken from the recording; gradients, updates,
sums and averages are computed anew, and everything that comes out has to be what was recorded. A simulation is simulated again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from wagma.commands.options import check_writable, prints_table, write_text
from wagma.errors import InputError
from wagma.progress import Progress
from wagma.sim.replay.compare import Difference
from wagma.text import percent, table
from wagma.trace import Trace, load_trace
from wagma.workloads import environment

if TYPE_CHECKING:
    from wagma.sim.replay.run import Replayed


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("recording", metavar="TRACE", help="a file that --trace wrote, with digests")
    parser.add_argument("--trace", metavar="FILE", help="write the trace of the replay; its times are those of the recording")
    parser.add_argument(
        "--json", metavar="FILE|-", help="write the result as JSON; with - nothing else goes to standard output"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no table and no progress")


def run(options: argparse.Namespace) -> int:
    """Print what was compared; status 1, and one line about the first difference, if something is not as it was recorded."""
    from wagma.sim.replay.again import check_simulated
    from wagma.sim.replay.run import check, replay

    check_writable(trace=options.trace, json=options.json)
    for option, name in (("trace", options.trace), ("json", options.json)):
        if name not in (None, "-") and os.path.realpath(name) == os.path.realpath(options.recording):
            raise InputError(f"--{option} {name}: is the recording itself; must be another file")
    recorded = load_trace(options.recording)
    real = recorded.header.world == "real"
    (check if real else check_simulated)(recorded)
    other = elsewhere(recorded)
    began = time.monotonic()
    try:
        with Progress(f"replaying {recorded.header.algorithm} on {recorded.scenario.ranks} ranks", options.quiet) as progress:
            replayed = replay(recorded, progress) if real else _simulate_again(recorded, progress)
    except Difference as difference:
        message = f"{recorded.source}: {difference}{other and f'; {other}'}"
        write_text(options.json, json.dumps({"schema": 1, "trace": recorded.source, "identical": False, "difference": message}))
        raise Difference(message) from difference
    if other and not options.quiet:
        print(f"wagma: {recorded.source}: {other}, and gives the same bits", file=sys.stderr)
    if options.trace is not None:
        replayed.trace.write(options.trace)
    if prints_table(options):
        print(describe(recorded, replayed))
    write_text(options.json, json.dumps(as_json(recorded, replayed, time.monotonic() - began), allow_nan=False))
    return 0


def _simulate_again(recorded: Trace, progress: Progress) -> Replayed:
    from wagma.api import run as simulate
    from wagma.sim.replay.again import compare_simulated

    again = simulate(recorded.scenario, recorded.header.algorithm, digests=True, progress=progress)
    return compare_simulated(recorded, again)


def elsewhere(recorded: Trace) -> str:
    """In what the machine of the recording differs from this one, as far as bits depend on it; empty: in nothing, or nobody knows."""
    if recorded.scenario.training.workload == "none" or not any(start.environment for start in recorded.starts):
        return ""
    here = environment(recorded.scenario.training.workload)
    here["threads"] = "1"  # whatever torch has now: a replay takes one
    found: dict[str, None] = {}
    for start in recorded.starts:
        for name, value in start.environment.items():
            if here.get(name) != value:
                found[f"{name} {value} (here {here.get(name, 'none')})"] = None
    return f"it was recorded with {', '.join(found)}" if found else ""


def describe(recorded: Trace, replayed: Replayed) -> str:
    """The result as text."""
    header = recorded.header
    ranks = rows(recorded, replayed)
    names = ("rank", "iterations", "late", "executions", "exchanges", "digests", "weights")
    lines = [
        [
            str(one["rank"]), str(one["iterations"]), percent(one["late"]), str(one["executions"] or ""), str(one["exchanges"] or ""),
            str(one["digests"]), str(one["weights"]),
        ]
        for one in ranks
    ]  # fmt: skip
    how = "real ranks, replayed" if header.world == "real" else "simulated ranks, simulated again"
    title = f"{recorded.source}: {header.algorithm} on {len(ranks)} {how}"
    total = sum(replayed.compared)
    text = f"{title}\n{table(names, lines)}\nbit-identical on all ranks: {total} digests, weights {replayed.digest}"
    if is_complete(recorded):
        return text
    return f"{text}\nthe scenario has {recorded.scenario.iterations} iterations: a rank ended before, or the recording was cut"


def is_complete(recorded: Trace) -> bool:
    """Whether every rank has the scenario's iterations, at least: what replays to the same bits may be the first part of a run."""
    done = Counter(a.rank for a in recorded.iterations)
    return all(done[rank] >= recorded.scenario.iterations for rank in range(recorded.scenario.ranks))


def rows(recorded: Trace, replayed: Replayed) -> list[dict[str, Any]]:
    """For each rank what was run again. late: the share of its arrivals that were; None: it joined no collective."""
    found = []
    for rank, (compared, weights) in enumerate(zip(replayed.compared, replayed.weights, strict=True)):
        iterations = [a for a in recorded.iterations if a.rank == rank]
        joined = [a for a in iterations if a.fresh is not None]
        found.append(
            {
                "rank": rank,
                "iterations": len(iterations),
                "late": sum(not a.fresh for a in joined) / len(joined) if joined else None,
                "executions": sum(e.rank == rank for e in recorded.executions),
                "exchanges": sum(x.rank == rank for x in recorded.exchanges),
                "digests": compared,
                "weights": weights,
            }
        )
    return found


def as_json(recorded: Trace, replayed: Replayed, seconds: float) -> dict[str, Any]:
    """The result as JSON."""
    return {
        "schema": 1,
        "trace": recorded.source,
        "world": recorded.header.world,
        "algorithm": recorded.header.algorithm,
        "workload": recorded.scenario.training.workload,
        "identical": True,
        "complete": is_complete(recorded),
        "digests": sum(replayed.compared),
        "weights": replayed.digest,
        "seconds": round(seconds, 3),
        "ranks": rows(recorded, replayed),
    }
