"""Visit every state that a small case of the protocol can reach, and check all promises in each.

The C++ machine is driven through all orders in which arrivals, activations, ends of executions and of reading can happen on P ranks that
arrive V times each: no deadlock, and promises 1 to 7 of docs/protocol.md, buffers and their contents included. Each step of a single
machine is repeated by the Python machine, which has to do the same. Of states that differ by a symmetry of the ranks one is visited, and
of orders that make no difference one is followed: docs/proof.md has the arguments, --cross-check compares with a search of all states.

Exit status: 0 all promises hold, 1 one is violated or the machines differ, 2 not decided (a limit was reached) or bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Self

from wagma.commands.options import add_output_options, check_writable, prints_table, write_text
from wagma.core.schedule import NEVER, Schedule
from wagma.errors import InputError
from wagma.progress import Line, Progress
from wagma.proof.exploring import Case, Exploration, Limits, Reductions, check_python, cross_check, explore

VERSIONS = 3
MEMORY_MIB = 4096
MOST_RANKS = 8  # of native/tools/explorer_locals.hpp
MOST_ARRIVALS = 1000  # each rank's machine is tabled for all of them before the search, and its limits, begin
MOST_NUMBER = 1 << 62  # of what C++ has 64 bits for


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    case = parser.add_argument_group("the case")
    case.add_argument("--ranks", type=int, metavar="P", required=True, help=f"1 to {MOST_RANKS}")
    case.add_argument("--group-size", type=int, metavar="S", help="ranks in a group (default: P)")
    case.add_argument("--versions", type=int, metavar="V", help=f"arrivals of each rank, syncs included (default: {VERSIONS})")
    case.add_argument("--iterations", metavar="N,N,...", help="instead: arrivals of each rank, 0 for one that closes at once")
    case.add_argument(
        "--sync-period", metavar="N|never", help="versions from sync to sync (default: as many as the most arrivals)"
    )
    case.add_argument(
        "--initiators", type=int, metavar="M", default=0, help="candidates of each version (default: 0, everybody)"
    )
    case.add_argument("--seed", type=int, metavar="N", default=0, help="what draws the candidates (default: 0)")
    case.add_argument("--accumulate", action="store_true", help="gradients that add up, of eager-SGD")
    case.add_argument("--resident", action="store_true", help="the model lives in the buffers")
    case.add_argument("--merge-once", action="store_true", help="no sum is merged twice")
    case.add_argument("--no-groups", action="store_true", help="syncs only")
    case.add_argument("--mutate", metavar="NAME", default="none", help="plant a defect, to see it found; implies --no-python")
    search = parser.add_argument_group("the search")
    search.add_argument("--no-symmetry", action="store_true", help="visit all states that differ by a symmetry of the ranks")
    search.add_argument("--no-order", action="store_true", help="follow all orders")
    search.add_argument("--exact", action="store_true", help="no reduction at all; with --cross-check: what to compare with")
    search.add_argument(
        "--cross-check", action="store_true", help="search without reductions as well, and compare what both found"
    )
    search.add_argument("--no-python", action="store_true", help="do not repeat each machine's steps in Python")
    search.add_argument("--max-states", type=int, metavar="N", default=0, help="give up beyond (default: 0, no limit)")
    search.add_argument(
        "--max-memory", type=int, metavar="MIB", default=MEMORY_MIB, help=f"for states; give up beyond (default: {MEMORY_MIB})"
    )
    search.add_argument("--edges", metavar="FILE", help="write each machine's steps, a line each")
    add_output_options(parser, columns=False)


def run(options: argparse.Namespace) -> int:
    """Explore; status 1 if something was found, 2 if a limit was reached."""
    check_writable(json=options.json, edges=options.edges)
    if options.cross_check and options.edges is not None:
        raise InputError(f"--edges {options.edges}: --cross-check is given too, which keeps no edges; allowed: one of both")
    case, limits = case_of(options), _limits(options)
    reductions = Reductions(not options.no_symmetry, not options.no_order, options.exact)
    if options.cross_check:
        return _cross_check(options, case, limits, reductions)
    began = time.monotonic()
    with _Searching(options.quiet) as searching:
        found = explore(case, limits, reductions, searching)
    seconds = time.monotonic() - began
    if options.edges is not None:
        _write_edges(options.edges, found)
    compared = 0
    if not (options.no_python or found.violation or case.mutation != "none"):
        compared = _compare(case, found, options.quiet)
    if prints_table(options):
        print(describe(case, found, compared, seconds))
    write_text(options.json, json.dumps(as_json(case, found, compared, seconds), allow_nan=False))
    if found.violation:
        return 1
    if not found.complete:
        limit = f"--max-states {limits.states}" if found.states == limits.states else f"--max-memory {options.max_memory}"
        print(f"wagma: explore: incomplete, so nothing is proved: {limit} reached at {found.states:,} states", file=sys.stderr)
        return 2
    return 0


def case_of(options: argparse.Namespace) -> Case:
    """The case that the options describe. Raises InputError."""
    ranks = options.ranks
    if not 1 <= ranks <= MOST_RANKS:
        raise InputError(f"--ranks {ranks}: must be from 1 to {MOST_RANKS}")
    if options.iterations is None:
        versions = VERSIONS if options.versions is None else options.versions
        if not 1 <= versions <= MOST_ARRIVALS:
            raise InputError(f"--versions {versions}: must be from 1 to {MOST_ARRIVALS}")
        iterations = (versions,) * ranks
    elif options.versions is not None:
        raise InputError(f"--iterations {options.iterations}: --versions {options.versions} is given too; allowed: one of both")
    else:
        iterations = _iterations(options.iterations, ranks)
    grouped = not options.no_groups
    try:
        schedule = Schedule(
            ranks,
            ranks if options.group_size is None else options.group_size,
            _sync_period(options.sync_period, max(iterations)),
            grouped=grouped,
            initiators=options.initiators,
            seed=options.seed,
            accumulate=options.accumulate,
        )
    except ValueError as error:
        raise InputError(f"explore: {error}") from error
    if options.resident and options.accumulate:
        raise InputError(
            "--resident: --accumulate is given too; models live in the buffers, gradients do not: allowed is one of both"
        )
    return Case(schedule, iterations, options.merge_once, options.resident, options.mutate)


def _iterations(text: str, ranks: int) -> tuple[int, ...]:
    try:
        iterations = tuple(int(part) for part in text.split(","))
    except ValueError:
        iterations = ()
    if len(iterations) != ranks or min(iterations) < 0 or not 0 < max(iterations) <= MOST_ARRIVALS:
        raise InputError(
            f"--iterations {text}: must be {ranks} whole numbers, one for each rank, from 0 to {MOST_ARRIVALS}, not all 0"
        )
    return iterations


def _sync_period(text: str | None, most: int) -> int:
    if text is None:
        return most
    if text == "never":
        return NEVER
    if not text.isdecimal() or not 1 <= int(text) <= MOST_NUMBER:
        raise InputError(f"--sync-period {text}: must be a whole number, at least 1, at most {MOST_NUMBER}, or never")
    return int(text)


def _limits(options: argparse.Namespace) -> Limits:
    if not 0 <= options.max_states <= MOST_NUMBER:
        raise InputError(f"--max-states {options.max_states}: must be from 1 to {MOST_NUMBER}, or 0 for no limit")
    if not 1 <= options.max_memory <= 1 << 24:
        raise InputError(f"--max-memory {options.max_memory}: must be from 1 to {1 << 24}, in MiB")
    return Limits(options.max_states, options.max_memory << 20)


def describe(case: Case, found: Exploration, compared: int, seconds: float) -> str:
    """The result as text."""
    lines = [f"explore: {_text_of(case)}"]
    if found.violation:
        lines += [f"violated: {found.violation}", *(f"  {step}" for step in found.path)]
    elif found.complete:
        lines.append("no deadlock; promises 1 to 7 hold in every reachable state")
    else:
        lines.append("incomplete: nothing is proved")
    lines.append(
        f"{found.states:,} states, {found.transitions:,} transitions, {found.quiet:,} quiet states, {seconds:.2f} s, "
        f"{found.bytes / 2**20:.0f} MiB"
    )
    if found.not_reduced:
        lines.append(f"without reductions: {found.not_reduced}")
    elif found.symmetries > 1:
        lines.append(f"of {found.symmetries} states that differ by a symmetry of the ranks one was visited")
    agree = f", all of them the same in Python: {compared:,}" if compared else ", not compared with Python"
    lines.append(f"single ranks: {found.local_states:,} states, {len(found.edges):,} edges of their machines{agree}")
    return "\n".join(lines)


def _text_of(case: Case) -> str:
    schedule, even = case.schedule, len(set(case.iterations)) == 1
    parts = [f"{schedule.world_size} ranks, group size {schedule.group_size}"]
    parts.append(f"{case.iterations[0]} versions" if even else f"iterations {' '.join(map(str, case.iterations))}")
    parts.append(f"sync period {schedule.sync_period or 'never'}")
    if schedule.selective:
        parts.append(f"{schedule.initiators} initiators of seed {schedule.seed}")
    flags = {"accumulate": schedule.accumulate, "syncs only": not schedule.grouped, "resident": case.resident}
    flags |= {"merge once": case.merge_once, f"mutation {case.mutation}": case.mutation != "none"}
    return ", ".join([*parts, *(name for name, set_ in flags.items() if set_)])


def as_json(case: Case, found: Exploration, compared: int, seconds: float) -> dict[str, Any]:
    """The result for --json."""
    numbers = {name: getattr(found, name) for name in ("states", "transitions", "quiet", "bytes", "local_states", "symmetries")}
    return {
        "result": found.result, **_case_json(case), **numbers, "local_edges": len(found.edges), "python_edges": compared,
        "seconds": seconds, "not_reduced": found.not_reduced or None, "violation": found.violation or None, "path": found.path,
    }  # fmt: skip


def _case_json(case: Case) -> dict[str, Any]:
    schedule = case.schedule
    return {
        "ranks": schedule.world_size, "group_size": schedule.group_size, "sync_period": schedule.sync_period,
        "iterations": list(case.iterations), "initiators": schedule.initiators, "seed": schedule.seed,
        "accumulate": schedule.accumulate, "grouped": schedule.grouped, "resident": case.resident, "merge_once": case.merge_once,
        "mutation": case.mutation,
    }  # fmt: skip


class _Searching:
    """The progress line of a search, whose end is not known: a context manager, to be called with (states, left)."""

    def __init__(self, quiet: bool) -> None:
        self._line = Line()
        self._quiet = quiet
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._line.erase()

    def __call__(self, states: int, left: int) -> None:
        if not self._quiet and self._line.is_due():
            rate = states / (time.monotonic() - self._began)
            self._line.show(f"exploring: {states:,} states, {left:,} to look at, {rate:,.0f} states/s")


def _compare(case: Case, found: Exploration, quiet: bool) -> int:
    with Progress("repeating each edge in Python", quiet) as progress:
        return check_python(case, found.edges, lambda done: progress(done, len(found.edges)))


def _write_edges(name: str, found: Exploration) -> None:
    try:
        with Path(name).open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in found.edges)
    except OSError as error:
        raise InputError(f"--edges {name}: cannot be written: {error.strerror}") from error


def _cross_check(options: argparse.Namespace, case: Case, limits: Limits, reductions: Reductions) -> int:
    began = time.monotonic()
    with _Searching(options.quiet) as searching:
        found = cross_check(case, limits, reductions, searching)
    # Searches end at the first broken promise, or at a limit: two that have ended early cannot be compared.
    early = "incomplete" if not found["complete"] and not found["violation"] else "violation" if found["violation"] else ""
    found = {
        "result": "different" if found["difference"] and early != "incomplete" else early or "ok",
        **_case_json(case),
        **found,
        "seconds": time.monotonic() - began,
    }
    if prints_table(options):
        print(f"cross-check: {_text_of(case)}")
        print(f"states {found['states']:,}, reduced {found['reduced_states']:,}")
        print(f"quiet states {found['quiet']:,}, reduced {found['reduced_quiet']:,}")
        print(f"edges of single ranks {found['edges']:,}, reduced {found['reduced_edges']:,}")
        verdicts = {
            "different": f"different: {found['difference']}",
            "violation": f"violated, as both searches find: {found['violation']}",
            "incomplete": "incomplete: nothing is compared",
            "ok": "the reduced search misses nothing that it must keep",
        }
        print(verdicts[found["result"]])
    write_text(options.json, json.dumps(found, allow_nan=False))
    if found["result"] == "incomplete":
        print("wagma: explore: incomplete, so nothing is compared: --max-states or --max-memory was reached", file=sys.stderr)
    return {"ok": 0, "incomplete": 2}.get(found["result"], 1)
