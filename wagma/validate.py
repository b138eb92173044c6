"""Checkers of the promises (docs/protocol.md). They read traces only, so that they judge both worlds alike and take no engine's word.

A checker looks at the records that are there: a missing one is promise 1's business alone. Times are compared within a rank
only, since clocks of different hosts have offsets; where two events share a nanosecond, both orders are legal.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import pairwise, zip_longest

from wagma.algorithms import Collectives, specification
from wagma.checks import exchanges, gradients, models, times
from wagma.checks.evidence import PROMISES, Run, Violation, is_built_in
from wagma.core.averaging import merge_rule
from wagma.core.groups import Group
from wagma.core.protocol import dimensions
from wagma.core.symbols import reduced
from wagma.trace import ExchangeRecord, Execution, Iteration, Trace

SHOWN = 3  # messages that a report gives per promise

__all__ = ["PROMISES", "Run", "Violation", "report", "validate"]


def validate(*traces: Trace) -> list[Violation]:
    """Every violation, by trace and promise; determinism last, since it holds the traces against each other too."""
    runs = [Run(trace) for trace in traces]
    return [*(v for run in runs for check in CHECKS for v in check(run)), *check_determinism(*runs)]


def report(traces: Sequence[Trace], violations: Sequence[Violation]) -> str:
    """A table in text: for each trace what it holds, for each promise whether it held, or why the trace cannot show it."""
    lines = []
    for trace in traces:
        header, own = trace.header, [v for v in violations if v.source == trace.source]
        scenario = trace.scenario
        wanted = scenario.ranks * (scenario.iterations - header.begin)
        iterations = f"{len(trace.iterations)} of {wanted} iterations of {len(trace.starts)} of {scenario.ranks} ranks"
        exchanged = f"{len(trace.exchanges)} exchanges, " if trace.exchanges else ""
        counts = f"{len(trace.executions)} executions, {exchanged}{iterations}"
        lines.append(f"{trace.source}: {header.algorithm} in {header.world} ({header.engine}), {counts}")
        unchecked = _unchecked(trace)
        for promise, name in PROMISES.items():
            broken = [v for v in own if v.promise == promise]
            verdict = f"violations: {len(broken)}" if broken else unchecked.get(promise, "held")
            lines.append(f"  {promise} {name:<{max(map(len, PROMISES.values()))}}  {verdict}")
            lines += [f"      {v.message}" for v in broken[:SHOWN]]
            if len(broken) > SHOWN:
                lines.append(f"      and {len(broken) - SHOWN} more")
    return "\n".join(lines)


def _unchecked(trace: Trace) -> dict[int, str]:
    """The promises that a trace cannot show, or not wholly, each with the reason."""
    unchecked = {}
    if not any(a.fresh is not None for a in trace.iterations):
        shown = {1, 2, 3, 5, 7, 8} if trace.exchanges else {1}
        if is_built_in(specification(trace.header.algorithm)):
            shown |= {3} if trace.header.digests == "symbolic" else set()
            shown |= {7} if trace.header.clock == "virtual" else set()
        unchecked = dict.fromkeys(PROMISES.keys() - shown, "not checked: no collective in this run")
        if not trace.exchanges:
            return unchecked
        if specification(trace.header.algorithm).collectives is Collectives.PAIRS:
            unchecked[5] = "no bound is promised; the stamps held"
    elif not any(trace.schedule.is_sync(a.iteration) for a in trace.iterations):
        unchecked[6] = "not checked: no sync in this run"
    if trace.exchanges and (reason := exchanges.not_recomputed(trace)) is not None:
        unchecked[7] = f"held; how long messages take not checked: {reason}"
    if trace.header.digests == "off":
        unchecked |= dict.fromkeys((3, 6, 8), "not checked: digests are off")
        unchecked[2] = f"held by the {'neighbours' if trace.exchanges else 'groups'}; sums not checked: digests are off"
    return unchecked


def check_exactly_once(run: Run) -> Iterator[Violation]:
    """Promise 1: each rank executes each version up to the last arrival of all once, in order; iterations count from the run's first."""
    expected = []
    version = run.schedule.first
    while version <= run.last:
        expected.append(version)
        version = run.schedule.next(version)
    for rank in run.strangers:
        yield run.violation(1, rank, None, f"expected ranks 0 to {run.ranks - 1}")
    for rank in sorted(set(range(run.ranks)) - run.initial.keys() - run.iterations.keys() - run.executions.keys()):
        yield run.violation(1, rank, None, "no record at all, expected some of every rank")
    for rank in range(run.ranks):
        versions = [e.version for e in run.executions[rank]]
        if (found := _first_difference(versions, expected)) is not None:
            seen, wanted = found
            text = f"executed {'nothing' if seen is None else seen} next, expected {'nothing' if wanted is None else wanted}"
            yield run.violation(1, rank, wanted if seen is None else seen, text)
        iterations = [a.iteration for a in run.iterations[rank]]
        if (
            found := _first_difference(iterations, range(run.schedule.begin, run.schedule.begin + len(iterations)))
        ) is not None:
            yield run.violation(1, rank, found[0], f"iteration {found[0]}, expected {found[1]}")
        yield from _check_causal_order(run, rank)
    yield from exchanges.exactly_once(run)


def _first_difference(seen: Sequence[int], expected: Sequence[int]) -> tuple[int | None, int | None] | None:
    return next((pair for pair in zip_longest(seen, expected) if pair[0] != pair[1]), None)


def _check_causal_order(run: Run, rank: int) -> Iterator[Violation]:
    """Executions do not overlap, and exactly the iterations that are versions had a collective."""
    sequences: set[int] = set()
    for before, after in pairwise(run.executions[rank]):
        end = _released_ns(before)
        if after.started_ns < end:
            text = f"started at {after.started_ns} ns, expected not before the end of version {before.version}, {end} ns"
            yield run.violation(1, rank, after.version, text)
    for a in run.iterations[rank]:
        if (a.fresh is not None) != run.joins(a.iteration):
            expected = "true or false" if run.joins(a.iteration) else "none, as the iteration has no collective"
            yield run.violation(1, rank, a.iteration, f"fresh = {a.fresh}, expected {expected}")
    records: list[Execution | Iteration | ExchangeRecord] = [
        *run.executions[rank], *run.iterations[rank], *run.exchanges[rank],
    ]  # fmt: skip
    for record in records:
        if record.sequence in sequences:
            version = record.iteration if isinstance(record, Iteration) else record.version
            yield run.violation(1, rank, version, f"a second record with sequence {record.sequence}, expected one")
        sequences.add(record.sequence)


def _released_ns(e: Execution) -> int:
    """When the rank could go on to the next version: its sum complete and its contribution read."""
    return e.completed_ns if e.read_ns is None else max(e.completed_ns, e.read_ns)


def check_agreement(run: Run) -> Iterator[Violation]:
    """Promise 2: members name the same group and got the same sum; groups are those of the schedule, disjoint and covering."""
    for version, groups in sorted(run.groups.items()):
        home: dict[int, Group] = {}
        for group, members in groups.items():
            first = members[0]
            if (text := _group_defect(run, first, group, home)) is not None:
                yield run.violation(2, first.rank, version, text)
            for e in members:
                # A rank that is in its own group is covered, and no group that is named overlaps another one.
                if e.rank not in group:
                    yield run.violation(2, e.rank, version, f"names the group {list(group)}, expected itself in it")
                if e.sum_digest != first.sum_digest:
                    text = f"sum {e.sum_digest}, expected {first.sum_digest} as at rank {first.rank} of the same group"
                    yield run.violation(2, e.rank, version, text)
            yield from _check_symbolic_sum(run, version, group)
    yield from exchanges.agreement(run)


def _check_symbolic_sum(run: Run, version: int, group: Group) -> Iterator[Violation]:
    """A symbolic sum tells what went into it: no contribution may be missing, doubled, or another one than its rank says."""
    members = [run.execution.get((rank, version)) for rank in group]
    if run.trace.header.digests != "symbolic" or None in members:
        return
    expected = reduced([e.contribution_digest for e in members if e is not None], run.schedule.is_sync(version))
    for e in members:
        if e is not None and e.sum_digest != expected:
            yield run.violation(2, e.rank, version, f"sum {e.sum_digest}, expected {expected} of its members' contributions")


def _group_defect(run: Run, e: Execution, group: Group, home: dict[int, Group]) -> str | None:
    """What is wrong with a group as `e` names it; `home` collects the group in which each rank was named so far."""
    if len(set(group)) < len(group) or not set(group) <= set(range(run.ranks)):
        return f"names the group {list(group)}, expected distinct ranks from 0 to {run.ranks - 1}"
    for rank in group:
        if home.setdefault(rank, group) != group:
            return f"names the group {list(group)}, expected rank {rank} in its group {list(home[rank])} only"
    if group != (wanted := run.schedule.group(e.rank, e.version)):
        return f"names the group {list(group)}, expected {list(wanted)}"
    return None


def check_wholeness(run: Run) -> Iterator[Violation]:
    """Promise 3: a contribution is the one complete model it claims to be, a merged sum one complete result of this rank."""
    if not run.digests:
        return
    for rank in range(run.ranks if run.communicates and run.models else 0):
        if run.initial.get(rank) is None:
            yield run.violation(3, rank, None, "initial_digest = None, expected a digest")
    for e in run.execution.values():
        yield from _missing_digests(run, e, e.version, "contribution_digest", "sum_digest")
        wanted, what = gradients.claimed(run, e) if run.schedule.accumulate else _claimed_content(run, e)
        if wanted is not None and e.contribution_digest not in (wanted, None):
            text = f"contribution {e.contribution_digest} with stamp {e.own_stamp}, expected {wanted}, {what}"
            yield run.violation(3, e.rank, e.version, text)
    for a in run.joined():
        yield from _missing_digests(run, a, a.iteration, "published_digest", "model_digest")
        merged = None if a.merged_version is None else run.execution.get((a.rank, a.merged_version))
        if merged is not None and a.merged_digest != merged.sum_digest:
            text = f"merged {a.merged_digest}, expected {merged.sum_digest}, its sum of version {merged.version}"
            yield run.violation(3, a.rank, a.iteration, text)
    yield from gradients.wholeness(run)
    yield from exchanges.wholeness(run)
    yield from models.wholeness(run)


def _missing_digests(run: Run, record: Execution | Iteration, version: int, *fields: str) -> Iterator[Violation]:
    for field in fields:
        if getattr(record, field) is None:
            yield run.violation(3, record.rank, version, f"{field} = None, expected a digest")


def _claimed_content(run: Run, e: Execution) -> tuple[str | None, str]:
    """(digest, description) of the model that an execution says it contributed; None where nothing tells."""
    stamp, last = e.own_stamp, run.last_arrival[e.rank]
    if stamp == e.version > last and run.schedule.is_sync(stamp):
        # A closed rank joins with the newest it has: what it published last, or the sync that replaced it.
        stamp = max(e.version - run.schedule.sync_period, last)
    if stamp == run.schedule.begin - 1:
        # Gradients are different: none is published to begin with, so that there is no content to compare.
        return run.initial.get(e.rank) if run.models else None, "the initial model"
    if stamp < e.version and run.schedule.is_sync(stamp):
        sync = run.execution.get((e.rank, stamp))
        return sync.sum_digest if sync is not None else None, f"the result of sync {stamp}"
    if stamp > last:
        return "nothing", f"as it arrived at version {last} last"
    a = run.iteration.get((e.rank, stamp))
    return a.published_digest if a is not None else None, f"published in iteration {stamp}"


def check_freshness(run: Run) -> Iterator[Violation]:
    """Promise 4: fresh exactly if the iteration's model is in the sum; a late rank merges the newest execution begun by then."""
    merged_before: defaultdict[int, int | None] = defaultdict(lambda: None)
    for a in run.joined():
        e = run.execution.get((a.rank, a.iteration))
        if e is not None and a.fresh != (e.own_stamp == e.version):
            text = f"fresh = {a.fresh}, expected {not a.fresh}, as the contribution has stamp {e.own_stamp}"
            yield run.violation(4, a.rank, a.iteration, text)
        elif (defect := _merge_defect(run, a, merged_before[a.rank])) is not None:
            yield run.violation(4, a.rank, a.iteration, defect)
        if a.merged_version is not None:
            merged_before[a.rank] = a.merged_version


def _merge_defect(run: Run, a: Iteration, before: int | None) -> str | None:
    """What is wrong with the version that an iteration merged; `before` is the one that its rank merged before."""
    version = a.merged_version
    if a.fresh:
        return None if version == a.iteration else f"merged version {version}, expected its own, being fresh"
    if version is None:
        if not run.merge_once:
            return "merged nothing, expected a version, as merge_once is off"
        if before is None:
            return "merged nothing, expected a version, as it had merged none before"
        version = before
    elif run.merge_once and version == before:
        return f"merged version {version} again, expected nothing, as merge_once is on"
    if not a.iteration <= version <= run.last:
        return f"merged version {version}, expected one from {a.iteration} to {run.last}, being late"
    chosen = run.execution.get((a.rank, version))
    if chosen is not None and chosen.started_ns > a.arrival_ns:
        return f"merged version {version} begun at {chosen.started_ns} ns, expected one begun by its arrival, {a.arrival_ns} ns"
    # Executions begin in order (promise 1), so that the next one alone tells whether there was a newer one.
    newer = run.execution.get((a.rank, run.schedule.next(version)))
    if newer is not None and newer.started_ns < a.arrival_ns:
        begun = f"begun at {newer.started_ns} ns, before its arrival at {a.arrival_ns} ns"
        return f"merged version {a.merged_version}, expected {newer.version} or newer, {begun}"
    return None


def check_staleness(run: Run) -> Iterator[Violation]:
    """Promise 5: contributions keep the schedule's bound; each is the newest model that its rank had published by the start."""
    if run.schedule.accumulate:
        yield from gradients.staleness(run)
        return
    for rank, executions in run.executions.items():
        arrivals = sorted((a.arrival_ns, a.iteration) for a in run.iterations[rank] if a.fresh is not None)
        initial = run.schedule.begin - 1
        for e in executions:
            staleness, bound = e.version - e.own_stamp, run.schedule.staleness_bound(e.version)
            if not 0 <= staleness <= bound:
                text = f"staleness {staleness} (stamp {e.own_stamp}), expected 0 to {bound}"
                yield run.violation(5, rank, e.version, text)
                continue
            count = bisect_left(arrivals, (e.started_ns, initial))
            newest = arrivals[count - 1][1] if count else initial
            if newest > e.own_stamp:
                text = f"stamp {e.own_stamp}, expected {newest}, published before the start at {e.started_ns} ns"
                yield run.violation(5, rank, e.version, text)
            own = run.iteration.get((rank, e.own_stamp))
            if own is not None and own.fresh is not None and own.arrival_ns > e.started_ns:
                text = f"stamp {e.own_stamp}, published at {own.arrival_ns} ns, expected one by the start at {e.started_ns} ns"
                yield run.violation(5, rank, e.version, text)
    yield from exchanges.staleness(run)


def check_consistency(run: Run) -> Iterator[Violation]:
    """Promise 6: after a sync all ranks that were in it have bit-identical models."""
    first: dict[int, Iteration] = {}
    for a in sorted(run.joined(), key=lambda a: (a.iteration, a.rank)):
        if run.schedule.is_sync(a.iteration) and a.model_digest is not None:
            other = first.setdefault(a.iteration, a)
            if a.model_digest != other.model_digest:
                text = f"model {a.model_digest} after the sync, expected {other.model_digest} as at rank {other.rank}"
                yield run.violation(6, a.rank, a.iteration, text)


def check_progress(run: Run) -> Iterator[Violation]:
    """Promise 7: nothing waits for an arrival except a sync; and effects follow their causes."""
    for e in run.execution.values():
        if not e.activated_ns <= e.started_ns <= e.completed_ns:
            text = f"activated, started, completed at {e.activated_ns}, {e.started_ns}, {e.completed_ns} ns"
            yield run.violation(7, e.rank, e.version, f"{text}, expected in this order")
        elif (ready := _ready_without_arrival(run, e)) is not None:
            a = run.iteration.get((e.rank, e.version))
            if a is not None and ready < a.arrival_ns and e.own_stamp == e.version:
                text = f"waited for its own arrival at {a.arrival_ns} ns, expected a passive start at {ready} ns"
                yield run.violation(7, e.rank, e.version, text)
    yield from _check_activation_spread(run)
    for a in (a for records in run.iterations.values() for a in records):
        if a.return_ns < a.arrival_ns:
            text = f"returned at {a.return_ns} ns, expected not before its arrival at {a.arrival_ns} ns"
            yield run.violation(7, a.rank, a.iteration, text)
        merged = None if a.merged_version is None else run.execution.get((a.rank, a.merged_version))
        if merged is not None and (merged.completed_ns > a.return_ns or merged.sequence > a.sequence):
            text = f"returned at {a.return_ns} ns (sequence {a.sequence}), expected not before version {merged.version} was"
            text += f" complete at {merged.completed_ns} ns (sequence {merged.sequence})"
            yield run.violation(7, a.rank, a.iteration, text)
    yield from gradients.progress(run)
    yield from exchanges.progress(run)
    yield from times.progress(run)


def _check_activation_spread(run: Run) -> Iterator[Violation]:
    """Where all ranks share a virtual clock: an activation reaches everyone within one hop per dimension of its tree."""
    if run.trace.header.clock != "virtual":
        return
    limit = dimensions(run.ranks) * run.trace.scenario.network.longest_hop_ns
    for version, groups in run.groups.items():
        activated = {e.rank: e.activated_ns for members in groups.values() for e in members}
        first = min(activated.values())
        for rank, at in activated.items():
            # Later activations cover earlier versions, so the first rank to know of this one has told everybody at the latest.
            if at > first + limit:
                text = f"activated at {at} ns, expected at most {limit} ns after the first rank at {first} ns"
                yield run.violation(7, rank, version, text)


def _ready_without_arrival(run: Run, e: Execution) -> int | None:
    """When nothing but the rank's own arrival could be missing; None where that is what a version waits for, or unknown."""
    if run.schedule.is_sync(e.version):
        return None
    if e.version == run.schedule.first:
        return e.activated_ns
    before = run.execution.get((e.rank, run.schedule.previous(e.version)))
    return None if before is None else max(e.activated_ns, _released_ns(before))


def check_determinism(*runs: Run) -> Iterator[Violation]:
    """Promise 8: equal contributions give equal sums and merges, in all runs whose digests are of the same kind."""
    known: dict[Hashable, tuple[str, str]] = {}
    for run in runs:
        if not run.digests:
            continue
        for promise in (_sums(run), _merges(run), exchanges.outcomes(run)):
            for rank, version, key, result in promise:
                place = f"rank {rank}, version {version} of {run.trace.source}"
                other, where = known.setdefault((run.trace.header.digests, run.dtype, *key), (result, place))
                if other != result:
                    text = f"{key[0]} {result}, expected {other} as for equal contributions at {where}"
                    yield run.violation(8, rank, version, text)


_Outcome = tuple[int, int, tuple[Hashable, ...], str]


def _sums(run: Run) -> Iterator[_Outcome]:
    """Every sum on which a whole group agrees: rank, version, what it was made from in association order, result."""
    for version, groups in run.groups.items():
        kind = "mean" if run.schedule.is_sync(version) else "sum"
        for group, members in groups.items():
            sums = {e.sum_digest for e in members}
            contributions = {e.rank: e.contribution_digest for e in members}
            result = members[0].sum_digest
            if len(sums) == 1 and contributions.keys() == set(group) and None not in contributions.values() and result:
                yield members[0].rank, version, (kind, *(contributions[rank] for rank in group)), result


def _merges(run: Run) -> Iterator[_Outcome]:
    """Every merge of a sum into a model: rank, iteration, what it was made from, result."""
    for a in run.joined() if run.models else ():
        if a.merged_version is None or a.fresh is None or None in (a.merged_digest, a.published_digest) or not a.model_digest:
            continue
        length = len(run.schedule.group(a.rank, a.merged_version))
        key = ("model", a.merged_digest, a.published_digest, *merge_rule(int(a.fresh), length))
        yield a.rank, a.iteration, key, a.model_digest


CHECKS: tuple[Callable[[Run], Iterator[Violation]], ...] = (
    check_exactly_once, check_agreement, check_wholeness, check_freshness, check_staleness, check_consistency, check_progress,
)  # fmt: skip
