"""The promises where gradients accumulate (eager_sgd): each is contributed once, and only initiators activate.

Each function is the part that `wagma.validate` has for such runs in the promise of its number. Group versions carry sums of gradients,
named by the iterations of the oldest and the newest; syncs carry models. Between taking its gradients back and arriving with
the sum of them and the next one, a rank has nothing published, and a version that starts then gets nothing from it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from wagma.checks.evidence import Run, Violation
from wagma.core.protocol import NONE
from wagma.core.symbols import NULL
from wagma.trace import Execution, Iteration


def _ledger(run: Run, rank: int) -> Iterator[tuple[Execution, int]]:
    """A rank's executions in order, each with the oldest iteration whose gradient was due: no version had taken it, and no sync's model."""
    due = run.schedule.begin
    for e in run.executions[rank]:
        yield e, due
        if not run.schedule.is_sync(e.version):
            due = max(due, e.own_stamp + 1)
        elif e.version <= run.last_arrival[rank]:
            due = max(due, e.version + 1)


def claimed(run: Run, e: Execution) -> tuple[str | None, str]:
    """(digest, description) of what an execution says it contributed; None where nothing tells."""
    last, stamp = run.last_arrival[e.rank], e.own_stamp
    if stamp == NONE:
        return NULL, "as its stamps say"
    if run.schedule.is_sync(e.version) and e.version > last:
        before = run.execution.get((e.rank, e.version - run.schedule.sync_period))
        if before is not None and before.version > last:
            return before.sum_digest, f"the result of sync {before.version}, being closed"
        a = run.iteration.get((e.rank, last))
        return run.initial.get(e.rank) if a is None else a.model_digest, "the model with which it closed"
    if stamp > last:
        return "nothing", f"as it arrived at version {last} last"
    a = run.iteration.get((e.rank, stamp))
    return a.published_digest if a is not None else None, f"published in iteration {stamp}"


def wholeness(run: Run) -> Iterator[Violation]:
    """Promise 3: each gradient is contributed once, in order; whatever is undelivered goes into the next one."""
    if not run.schedule.accumulate:
        return
    for rank in range(run.ranks):
        for e, due in _ledger(run, rank):
            if (text := _range_defect(run, e, due)) is not None:
                yield run.violation(3, rank, e.version, text)
        taken = {e.own_stamp for e in run.executions[rank] if not run.schedule.is_sync(e.version)}
        for a in run.iterations[rank]:
            pending = (
                a.iteration > run.schedule.begin and not run.schedule.is_sync(a.iteration - 1) and a.iteration - 1 not in taken
            )
            if a.fresh is not None and (a.retracted_ns is not None) != pending:
                text = f"retracted_ns = {a.retracted_ns}, expected {'a time' if pending else None}, as iteration {a.iteration - 1}'s"
                yield run.violation(3, rank, a.iteration, f"{text} gradient was {'not yet' if pending else 'already'} taken")


def _range_defect(run: Run, e: Execution, due: int) -> str | None:
    stamps = (e.oldest_stamp, e.own_stamp)
    if e.oldest_stamp is None:
        return "oldest_stamp = None, expected a number"
    if run.schedule.is_sync(e.version):
        wanted = (e.version, e.version)
        return None if stamps == wanted else f"stamps {stamps}, expected {wanted}, as a sync averages models"
    if e.own_stamp == NONE:
        return None if e.oldest_stamp == NONE else f"stamps {stamps}, expected {(NONE, NONE)} of the null contribution"
    if e.oldest_stamp != due or e.own_stamp < due:
        what = "contributed twice" if e.oldest_stamp < due else "lost"
        return f"gradients {e.oldest_stamp} to {e.own_stamp}, expected from {due}: some are {what}"
    return None


def staleness(run: Run) -> Iterator[Violation]:
    """Promise 5: gradients keep the schedule's bound; whatever a rank had published by the start is contributed."""
    for rank in range(run.ranks):
        joined = [a for a in run.iterations[rank] if a.fresh is not None]
        arrivals = sorted((a.arrival_ns, a.iteration) for a in joined)
        for e, due in _ledger(run, rank):
            bound = _bound(run, e)
            sync = run.schedule.is_sync(e.version)  # its stamps are promise 3's
            if not sync and e.staleness is not None and not 0 <= e.staleness <= bound:
                text = f"staleness {e.staleness} (oldest stamp {e.oldest_stamp}), expected 0 to {bound}"
                yield run.violation(5, rank, e.version, text)
                continue
            own = run.iteration.get((rank, e.own_stamp))
            if own is not None and own.fresh is not None and own.arrival_ns > e.started_ns:
                text = f"stamp {e.own_stamp}, published at {own.arrival_ns} ns, expected one by the start at {e.started_ns} ns"
                yield run.violation(5, rank, e.version, text)
            count = bisect_left(arrivals, (e.started_ns, NONE))
            newest = arrivals[count - 1][1] if count else NONE
            if sync or run.schedule.is_sync(newest) or not due <= newest > e.own_stamp:
                continue
            after = run.iteration.get((rank, newest + 1))
            if after is None or after.retracted_ns is None or after.retracted_ns > e.started_ns:
                text = f"stamp {e.own_stamp}, expected {newest}, published before the start at {e.started_ns} ns"
                yield run.violation(5, rank, e.version, text)


def _bound(run: Run, e: Execution) -> int:
    """The schedule's; a rank that closes just before a sync leaves gradients for the version after it."""
    before = run.schedule.previous(e.version)
    if run.schedule.is_sync(before) and before > run.last_arrival[e.rank]:
        return run.schedule.sync_period
    return run.schedule.staleness_bound(e.version)


def progress(run: Run) -> Iterator[Violation]:
    """Promise 7, who activates: candidates only, until a rank has closed; and a candidate does so when it arrives."""
    schedule = run.schedule
    first_to_close = min((run.last_arrival[rank] for rank in range(run.ranks)), default=NONE)
    for e in (e for groups in run.groups.values() for members in groups.values() for e in members):
        may = schedule.may_activate(e.rank, e.version)
        if e.activator and not may and e.version <= first_to_close:
            text = f"activated by its arrival, expected one of {sorted(schedule.candidates(e.version))} to do so"
            yield run.violation(7, e.rank, e.version, text)
        a: Iteration | None = run.iteration.get((e.rank, e.version))
        if (
            run.trace.header.clock == "virtual"
            and may
            and a is not None
            and a.fresh is not None
            and e.activated_ns > a.arrival_ns
        ):
            text = f"activated at {e.activated_ns} ns, expected by its own arrival at {a.arrival_ns} ns, which may activate it"
            yield run.violation(7, e.rank, e.version, text)
