"""Who activates, and how iterations follow each other: the part of promise 7 that needs one clock for all ranks, that of a simulation.

How a rank's time goes by is recomputed for the algorithms that wagma comes with: others may wait in another order.
"""

from __future__ import annotations

from collections.abc import Iterator

from wagma.checks import graphs
from wagma.checks.evidence import Run, Violation
from wagma.trace import Execution, Iteration


def progress(run: Run) -> Iterator[Violation]:
    """Promise 7: versions are activated by arrivals; a rank computes, arrives, and returns as soon as what it waits for is there."""
    if run.trace.header.clock != "virtual":
        return
    for version, groups in sorted(run.groups.items()):
        if version <= run.last:
            yield from _check_activators(run, version, [e for members in groups.values() for e in members])
    if run.built_in is not None and (not run.settings.global_clock or run.complete):
        ends = whole_ns(run)
        for rank in range(run.ranks):
            yield from _check_iterations(run, rank, ends)


def _check_activators(run: Run, version: int, executions: list[Execution]) -> Iterator[Violation]:
    """Whoever is called an activator was one, and whoever knew of the version first is: it cannot have heard of it from others."""
    first_to_close = min(run.last_arrival[rank] for rank in range(run.ranks))
    told = run.schedule.selective and version > first_to_close  # that a candidate has closed: then whoever waits activates
    for e in (e for e in executions if e.activator):
        a = run.iteration.get((e.rank, version))
        if version > run.last_arrival[e.rank]:
            yield run.violation(7, e.rank, version, "called its activator, expected one that has arrived at it")
        elif a is not None and (e.activated_ns < a.arrival_ns or (e.activated_ns > a.arrival_ns and not told)):
            text = (
                f"called its activator at {e.activated_ns} ns, expected one that arrived at that time, not at {a.arrival_ns} ns"
            )
            yield run.violation(7, e.rank, version, text)
    first = min(executions, key=lambda e: (e.activated_ns, not e.activator, e.rank))
    if not first.activator and len(executions) == run.ranks:
        text = f"knew of it first, at {first.activated_ns} ns, and is not called its activator, expected one that is"
        yield run.violation(7, first.rank, version, text)


def whole_ns(run: Run) -> dict[tuple[int, int], int]:
    """By rank and iteration, when its compute has ended (which communication may overlap): with a global clock, that of all ranks."""
    ends: dict[tuple[int, int], int] = {}
    latest: dict[int, int] = {}
    for rank, began in run.started_ns.items():
        for a in run.iterations[rank]:
            ends[rank, a.iteration] = end = began + a.computed_ns + a.delayed_ns
            latest[a.iteration] = max(latest.get(a.iteration, 0), end)
            began = a.return_ns
    return {key: latest[key[1]] for key in ends} if run.settings.global_clock else ends


def _check_iterations(run: Run, rank: int, ends: dict[tuple[int, int], int]) -> Iterator[Violation]:
    began = run.started_ns.get(rank)
    for number, a in enumerate(run.iterations[rank]):
        if a.iteration != number or began is None or (a.fresh is not None) != run.joins(number):
            return  # promise 1 has it
        arrival = began + a.computed_ns + a.delayed_ns - run.early_ns(a)
        if a.arrival_ns != arrival:
            text = (
                f"arrived at {a.arrival_ns} ns, expected {arrival} ns: it began at {began} ns, computed for {a.computed_ns} ns"
            )
            yield run.violation(7, rank, number, f"{text} and was delayed for {a.delayed_ns} ns")
        awaited, end = _awaited_ns(run, a), ends[rank, number]
        if awaited is not None and a.return_ns != max(end, awaited):
            text = f"returned at {a.return_ns} ns, expected {max(end, awaited)} ns, when all that it waits for was there"
            yield run.violation(7, rank, number, text)
        began = a.return_ns


def _awaited_ns(run: Run, a: Iteration) -> int | None:
    """When what an iteration waits for beyond its own compute was there; its arrival if that is nothing, None if a record is missing."""
    if a.fresh is not None:
        merged = None if a.merged_version is None else run.execution.get((a.rank, a.merged_version))
        if merged is None:
            return a.arrival_ns if a.merged_version is None else None
        return merged.completed_ns
    if run.neighbourly:
        x = run.exchange.get(("neighbours", a.rank, a.iteration))
        return None if x is None else x.completed_ns
    waits = run.built_in == "swarm_sgd" or (run.built_in == "ad_psgd" and run.settings.await_averaging)
    if waits and graphs.partner(run, a.rank, a.iteration) is not None:
        x = run.exchange.get(("active", a.rank, a.iteration))
        return None if x is None else x.completed_ns
    return a.arrival_ns
