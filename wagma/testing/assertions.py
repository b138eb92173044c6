"""What a run must keep, as assertions that list every violation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from wagma.core.effects import Value
from wagma.errors import InputError
from wagma.testing.problems import Ledger
from wagma.testing.runs import Observed
from wagma.trace import Trace
from wagma.validate import validate

#: Weights are sums of a few hundred rounded float64 numbers between 0 and 1.
ROUNDING = 1e-9
SHOWN = 8  # violations that a message gives


def assert_promises(*traces: Trace) -> None:
    """Raise AssertionError, listing every violation, unless the traces keep all promises, alone and against each other."""
    violations = validate(*traces)
    if violations:
        lines = [f"promise {v.promise} ({v.name}), {v.source}: {v.message}" for v in violations]
        raise AssertionError(f"{len(lines)} violations\n" + "\n".join(lines))


def assert_bounded_staleness(trace: Trace, bound: int) -> None:
    """Raise AssertionError, naming rank and version, unless no contribution is staler than `bound` iterations.

    Of collectives staleness is version - stamp (of the oldest gradient where they accumulate); of exchanges and pairs, how many
    iterations a rank was ahead of what it got.
    """
    fail_if(f"{trace.source}: expected a staleness of at most {bound}", _staler(trace, bound))


def _staler(trace: Trace, bound: int) -> Iterator[str]:
    for e in trace.executions:
        if e.staleness is not None and e.staleness > bound:
            yield f"rank {e.rank}, version {e.version}: staleness {e.staleness}"
    for x in trace.exchanges:
        if (staleness := max(x.iteration - stamp for stamp in x.stamps)) > bound:
            yield f"rank {x.rank}, exchange {x.version}: staleness {staleness}"


def assert_averages(run: Observed) -> None:
    """Raise AssertionError unless every model of a `Ledger` is made of averages whose weights add up to 1, none of them negative.

    Then the weight of the initial model is 1 in every model; that of no update is negative or, where models are averaged, above 1. Of pairs
    the first alone is asked: where two averages of a rank overlap, it moves by half of a difference that is none any more.
    """
    fail_if(f"{run.trace.source}: averages", _unlike_averages(run))


def _unlike_averages(run: Observed) -> Iterator[str]:
    weights, pairs = _ledger(run), _in_pairs(run)
    for rank, iteration in np.ndindex(weights.shape[:2]):
        initial, updates = weights[rank, iteration, 0], weights[rank, iteration, 1:]
        where = f"rank {rank}, iteration {iteration}"
        if not abs(initial - 1) <= ROUNDING:
            yield f"{where}: the weight of the initial model is {initial:.6g}, expected 1: weights of an average do not add up to 1"
        elif pairs:
            continue
        elif not updates.min() >= -ROUNDING:
            yield f"{where}: {_update(run, int(updates.argmin()))} has the weight {updates.min():.6g}, expected none below 0"
        elif run.trace.header.value == Value.MODEL and not updates.max() <= 1 + ROUNDING:
            yield f"{where}: {_update(run, int(updates.argmax()))} has the weight {updates.max():.6g}, expected at most 1"


def assert_nothing_lost(run: Observed) -> None:
    """Raise AssertionError unless, in a `Ledger`, every rank's own update is in its model, and every update in all models after a sync.

    "In" is with a weight above 0. The first is not asked of pairs, nor where gradients are averaged: a late one comes later.
    """
    fail_if(f"{run.trace.source}: updates", _lost(run))


def _lost(run: Observed) -> Iterator[str]:
    weights, schedule = _ledger(run), run.schedule
    models = run.trace.header.value == Value.MODEL and not _in_pairs(run)
    ranks, iterations = weights.shape[:2]
    by_update = weights[:, :, 1:].reshape(ranks, iterations, ranks, iterations)
    for rank, iteration in np.ndindex(ranks, iterations):
        where = f"rank {rank}, iteration {iteration}"
        if models and not by_update[rank, iteration, rank, iteration] > 0:
            yield f"{where}: its own update is not in its model"
        if schedule.is_sync(iteration) and _communicates(run):
            missing = np.argwhere(~(by_update[rank, iteration, :, : iteration + 1] > 0))
            if len(missing):
                one = f"the update of rank {missing[0][0]} in iteration {missing[0][1]}"
                yield f"{where}: after the sync {len(missing)} updates are not in its model, the first is {one}"


def assert_synced(run: Observed, sync_period: int | None = None) -> None:
    """Raise AssertionError unless in a `Ledger` all that came up to a sync has the same weight in all models until the next sync.

    So nothing is averaged that is older than the last sync, whatever its stamp says. sync_period: that of the syncs that there should be;
    None: the run's own. Of averages of models, in collectives.
    """
    fail_if(f"{run.trace.source}: what came before a sync", _unlike_after_syncs(run, sync_period))


def _unlike_after_syncs(run: Observed, sync_period: int | None) -> Iterator[str]:
    weights = _ledger(run)
    ranks, iterations = weights.shape[:2]
    schedule = run.schedule if sync_period is None else replace(run.schedule, sync_period=sync_period)
    known, reference = np.zeros((ranks, iterations), bool), np.zeros(ranks * iterations)
    for t in range(iterations):
        if schedule.is_sync(t):
            known[:, : t + 1], reference = True, weights[0, t, 1:]
        different = np.abs(weights[:, t, 1:] - reference) * known.ravel()
        for rank in np.flatnonzero(~(different.max(axis=1) <= ROUNDING)):
            place = int(different[rank].argmax())
            seen, wanted = weights[rank, t, 1 + place], reference[place]
            yield f"rank {rank}, iteration {t}: {_update(run, place)} has the weight {seen:.6g}, expected {wanted:.6g} since the sync"


def _in_pairs(run: Observed) -> bool:
    return any(x.role != "neighbours" for x in run.trace.exchanges)


def _communicates(run: Observed) -> bool:
    return any(a.fresh is not None for a in run.trace.iterations)


def _ledger(run: Observed) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if not isinstance(run.problem, Ledger):
        raise InputError(f"problem = {type(run.problem).__name__}: must be a Ledger, whose models say what is in them")
    return run.models


def _update(run: Observed, place: int) -> str:
    rank, iteration = divmod(place, run.models.shape[1])
    return f"the update of rank {rank} in iteration {iteration}"


def fail_if(what: str, lines: Iterator[str]) -> None:
    """Raise AssertionError with the number of violations and the first of them, if there are any."""
    if found := list(lines):
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise AssertionError(f"{what}: {len(found)} violations\n" + "\n".join([*found[:SHOWN], *more]))
