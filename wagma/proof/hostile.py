"""A seed of `wagma fuzz` in the simulator: the Python machine, the real driver, and the checkers of traces.

The C++ fuzzer's plan of the seed (fuzzer_plan.hpp) becomes a scenario, a tick a nanosecond: ranks, group size, sync period, initiators
and the like; every rank's delay before each arrival as its compute time (`compute.kind = "trace"`); the scales of its activations and
executions as the network's times between nodes; its slowest progress thread as `network.progress_*_ns`. What the simulator has besides
is drawn from `random.Random(seed)`: who shares a node and how fast messages are there, bursts of imbalance, noise, how much sooner
progress threads of ranks that wait look. What it does not have is left out: uneven ends, pauses of whole processes, models in the
buffers, initiators where models are averaged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

from wagma.api import run
from wagma.errors import WagmaError
from wagma.proof import native_proof
from wagma.scenario import read
from wagma.trace import Execution, Iteration, Trace
from wagma.validate import validate

#: Larger scenarios take seconds: iterations are left out.
MOST_ARRIVALS = 512
TICK_S = 1e-9
MOST_ATTEMPTS = 400
#: Small scenarios that shrinking draws, for each number of ranks from 1 on.
DRAWS, MOST_DRAWN_RANKS, MOST_DRAWN_ITERATIONS = 24, 8, 4

Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with the simulation of a scenario. kind: what a smaller one has to share with it. lines: its trace."""

    kind: str
    message: str
    lines: tuple[str, ...]


def scenario_of(seed: int) -> tuple[Table, str]:
    """The scenario of a seed as a table, and the algorithm that runs on it."""
    drawn = native_proof().drawn(seed)
    own = random.Random(seed)
    ranks = drawn["ranks"]
    iterations = max(1, min(len(drawn["computes"][0]), MOST_ARRIVALS // ranks))
    table: Table = {
        "name": f"seed {seed}",
        "ranks": ranks,
        "iterations": iterations,
        "seed": seed,
        "model": {"parameters": 1000},
        "work": {"per_rank": 1, "unit": "steps"},
        "compute": {
            "kind": "trace",
            "seconds": [[max(1, n) * TICK_S for n in row[:iterations]] or [TICK_S] for row in drawn["computes"]],
        },
        "imbalance": _imbalance(own),
        "network": _network(own, drawn),
        "noise": _noise(own),
        "algorithm": {
            "group_size": drawn["group_size"],
            "sync_period": drawn["sync_period"] or "never",
            "merge_once": drawn["merge_once"],
            "groups": "fixed" if drawn["fixed"] else "changing",
        },
        "algorithms": {"eager_sgd": {"initiators": drawn["initiators"] or "solo"}},
    }
    return table, "eager_sgd" if drawn["accumulate"] else "wagma_sgd" if drawn["grouped"] else "local_sgd"


def _imbalance(own: random.Random) -> list[Table]:
    if own.random() < 0.5:
        return []
    delay_s = 10.0 ** own.uniform(-9, -3)
    return [{"kind": "burst", "probability": own.choice((0.02, 0.2)), "length": own.randint(1, 12), "delay_s": delay_s}]


def _network(own: random.Random, drawn: Mapping[str, Any]) -> Table:
    """Within a node messages are slower or faster by up to six orders of magnitude, so that they overtake each other."""
    return {
        "latency_ns": drawn["latency"],
        "activation_ns": drawn["activation"],
        "progress_computing_ns": drawn["look"],
        "progress_waiting_ns": drawn["look"] / own.choice((1, 10, 1000)),
        **_nodes(own),
    }


def _nodes(own: random.Random) -> Table:
    return {
        "ranks_per_node": own.randint(1, 4),
        "placement": own.choice(("block", "round_robin")),
        "node": {"latency_ns": 10.0 ** own.uniform(0, 6), "activation_ns": 10.0 ** own.uniform(0, 6)},
    }


def _noise(own: random.Random) -> Table:
    if own.random() < 0.5:
        return {}
    power = own.randint(2, 5)
    return {
        "detours_per_s": 10.0**power,
        "detour_s": 10.0 ** own.uniform(-8, -power),
    }  # at most as long as the compute time itself


def judge(table: Mapping[str, Any], algorithm: str) -> Verdict | None:
    """Simulate a scenario twice, validate the trace, compare both; None: nothing is wrong."""
    try:
        first, second = (run(read(dict(table), "fuzz"), algorithm, digests=True) for _ in range(2))
    except Exception as error:  # a KeyError, say, is a defect as well, and without a verdict nobody would be told the seed
        message = str(error) if isinstance(error, WagmaError) else f"{type(error).__name__}: {error}"
        return Verdict(type(error).__name__, message, ())
    if violations := validate(first):
        worst = violations[0]
        return Verdict(f"promise {worst.promise}", f"promise {worst.promise} ({worst.name}): {worst.message}", lines_of(first))
    for one, other in zip_longest(*((*trace.executions, *trace.iterations) for trace in (first, second))):
        if one != other:
            return Verdict(
                "determinism", f"determinism: two runs of one seed differ, first in {one}, then {other}", lines_of(first)
            )
    return None


def lines_of(trace: Trace) -> tuple[str, ...]:
    """All records in the order of time, a line each."""
    records: list[tuple[int, int, str]] = [(e.completed_ns, e.rank, _execution(e)) for e in trace.executions]
    records += [(i.return_ns, i.rank, _iteration(i)) for i in trace.iterations]
    return tuple(text for _, _, text in sorted(records))


def _execution(record: Execution) -> str:
    times = f"activated {record.activated_ns}, started {record.started_ns}, completed {record.completed_ns}"
    return f"rank {record.rank}: execution {record.version} with stamp {record.own_stamp}, {times}, sum {record.sum_digest}"


def _iteration(record: Iteration) -> str:
    fresh = "" if record.fresh is None else ", fresh" if record.fresh else f", late with {record.merged_version}"
    return f"rank {record.rank}: iteration {record.iteration}, arrived {record.arrival_ns}, returned {record.return_ns}{fresh}"


def shrink(table: Table, algorithm: str, found: Verdict) -> tuple[Table, Verdict, int]:
    """A smaller scenario that fails in the same way, its verdict, and how many were tried.

    Whether a rank can be left out often depends on the trees of activations, so small scenarios are drawn first, from the same delays.
    """
    attempts = 0
    own = random.Random(table["seed"])
    for ranks in (size for size in range(1, min(table["ranks"], MOST_DRAWN_RANKS + 1)) for _ in range(DRAWS)):
        attempts += 1
        candidate = _redrawn(table, ranks, own)
        verdict = judge(candidate, algorithm)
        if verdict is not None and verdict.kind == found.kind:
            table, found = candidate, verdict
            break
    smaller = True
    while smaller and attempts < MOST_ATTEMPTS:
        smaller = False
        for change in _changes(table):
            attempts += 1
            candidate = change()
            verdict = judge(candidate, algorithm)
            if verdict is not None and verdict.kind == found.kind:
                table, found, smaller = candidate, verdict, True
                break
            if attempts >= MOST_ATTEMPTS:
                break
    return table, found, attempts


def _changes(table: Table) -> Iterator[Callable[[], Table]]:
    """What to leave out next, the most first."""
    ranks, iterations, rows = table["ranks"], table["iterations"], table["compute"]["seconds"]
    for fewer in dict.fromkeys((ranks // 2, ranks - 1)):
        if fewer:
            yield partial(_with_ranks, table, range(fewer))
    if ranks <= MOST_DRAWN_RANKS:
        for out in range(ranks - 1):
            yield partial(_with_ranks, table, [rank for rank in range(ranks) if rank != out])
    for fewer in dict.fromkeys((iterations // 2, iterations - 1)):
        if fewer:
            yield partial(_with_rows, table | {"iterations": fewer}, [row[:fewer] for row in rows])
    for key in ("imbalance", "noise", "network"):
        if table[key]:
            yield partial(dict, table | {key: type(table[key])()})
    for rank, row in enumerate(rows):
        if any(seconds > TICK_S for seconds in row):
            yield partial(_with_rows, table, [*rows[:rank], [TICK_S] * len(row), *rows[rank + 1 :]])


def _with_rows(table: Table, rows: list[list[float]]) -> Table:
    return table | {"compute": {"kind": "trace", "seconds": rows}}


def _with_ranks(table: Table, kept: Sequence[int]) -> Table:
    ranks, rows, settings = len(kept), table["compute"]["seconds"], table["algorithm"]
    initiators = table["algorithms"]["eager_sgd"]["initiators"]
    fewer = table | {
        "ranks": ranks,
        "algorithm": settings | {"group_size": min(ranks, settings["group_size"])},
        "algorithms": {"eager_sgd": {"initiators": initiators if initiators == "solo" else min(ranks, initiators)}},
    }
    return _with_rows(fewer, [rows[rank] for rank in kept])


def _redrawn(table: Table, ranks: int, own: random.Random) -> Table:
    """With few of its ranks and iterations; whose delays are whose, group size, nodes and initiators anew."""
    fewer = _with_ranks(table, own.sample(range(table["ranks"]), ranks))
    iterations = own.randint(1, min(table["iterations"], MOST_DRAWN_ITERATIONS))
    rows = [own.sample(row, iterations) for row in fewer["compute"]["seconds"]]
    again = _with_rows(fewer | {"iterations": iterations}, rows)
    again["algorithm"] = fewer["algorithm"] | {"group_size": own.randint(1, ranks)}
    if table["algorithms"]["eager_sgd"]["initiators"] != "solo":
        again["algorithms"] = {"eager_sgd": {"initiators": own.randint(1, ranks)}}
    again["network"] = table["network"] | _nodes(own)
    return again


def text_of(table: Table, algorithm: str) -> str:
    """A scenario in one line, as the C++ fuzzer writes cases."""
    settings = table["algorithm"]
    return (
        f"{algorithm} in the simulator, ranks {table['ranks']}, group size {settings['group_size']}, sync period "
        f"{settings['sync_period']}, iterations {table['iterations']}, network {table['network']}, compute times "
        f"{[[round(s / TICK_S) for s in row] for row in table['compute']['seconds']]} ns"
    )
