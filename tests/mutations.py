"""For each promise the ways to break it, and nothing else, in a passing trace: what `wagma.validate` must notice."""

from __future__ import annotations

import copy

from cases import ITERATIONS, OTHER, RANKS, SYNC_PERIOD, Case, breaks

from wagma.core.protocol import NONE
from wagma.trace import Execution, Iteration

# -- 1: exactly once, in order ---------------------------------------------------------------------------------------------


@breaks(1)
def execution_removed(case: Case) -> None:
    case.trace.executions.remove(case.pick(lambda e: e.own_stamp < e.version))


@breaks(1)
def last_execution_removed(case: Case) -> None:
    case.trace.executions.remove(case.execution[2, ITERATIONS - 1])


@breaks(1)
def executed_twice(case: Case) -> None:
    again = copy.deepcopy(case.pick(lambda e: True))
    again.sequence += 1
    case.trace.executions.append(again)


@breaks(1)
def executed_in_another_order(case: Case) -> None:
    e = case.pick(lambda e: not any(case.merges(e)) and not any(case.merges(case.execution[e.rank, e.version + 1])))
    after = case.execution[e.rank, e.version + 1]
    e.sequence, after.sequence = after.sequence, e.sequence


@breaks(1)
def executed_after_the_end(case: Case) -> None:
    last = case.execution[0, ITERATIONS - 1]
    extra = copy.deepcopy(last)
    extra.version, extra.sequence, extra.own_stamp = ITERATIONS, 10**6, last.version
    extra.group = list(case.schedule.group(0, ITERATIONS))
    extra.started_ns = extra.completed_ns = extra.read_ns = 10**6
    extra.contribution_digest = last.sum_digest
    case.trace.executions.append(extra)


@breaks(1)
def executions_overlap(case: Case) -> None:
    def before(e: Execution) -> Execution:
        return case.execution[e.rank, e.version - 1]

    e = case.pick(lambda e: e.activated_ns < before(e).completed_ns and before(e).own_stamp == e.own_stamp)
    e.started_ns = before(e).completed_ns - 1


@breaks(1)
def started_while_read(case: Case) -> None:
    e = case.pick(lambda e: True)
    e.read_ns = case.execution[e.rank, e.version + 1].started_ns + 1


@breaks(1)
def iteration_removed(case: Case) -> None:
    case.trace.iterations.remove(case.join(lambda a: True))


@breaks(1)
def two_records_at_one_place(case: Case) -> None:
    a = case.join(lambda a: a.fresh is True)
    a.sequence = case.own(a).sequence


@breaks(1)
def unknown_rank(case: Case) -> None:
    stranger = copy.deepcopy(case.join(lambda a: a.fresh is True))
    stranger.rank = RANKS
    case.trace.iterations.append(stranger)


@breaks(1)
def version_not_joined(case: Case) -> None:
    a = case.join(lambda a: True)
    a.fresh = a.merged_version = None


@breaks(1, algorithm="local_sgd")
def joined_what_is_no_version(case: Case) -> None:
    a = case.join(lambda a: True)
    a.fresh, a.merged_version = True, a.iteration


# -- 2: agreement ----------------------------------------------------------------------------------------------------------


@breaks(2)
def another_sum_at_one_member(case: Case) -> None:
    e = case.pick(lambda e: len(e.group) > 1)
    e.sum_digest = OTHER
    for a in case.merges(e):
        a.merged_digest = OTHER


@breaks(2)
def another_order_at_one_member(case: Case) -> None:
    case.pick(lambda e: len(e.group) > 1).group.reverse()


@breaks(2)
def another_order_at_all_members(case: Case) -> None:
    first = case.pick(lambda e: len(e.group) > 1)
    for rank in first.group[:]:
        case.execution[rank, first.version].group.reverse()


@breaks(2)
def somebody_elses_group(case: Case) -> None:
    e = case.pick(lambda e: True)
    other = next(rank for rank in range(RANKS) if rank not in e.group)
    e.group = case.execution[other, e.version].group[:]


@breaks(2)
def member_of_two_groups(case: Case) -> None:
    e = case.pick(lambda e: True)
    other = next(rank for rank in range(RANKS) if rank not in e.group)
    for rank in e.group:
        case.execution[rank, e.version].group = [*e.group, other]


@breaks(2)
def member_that_does_not_exist(case: Case) -> None:
    case.pick(lambda e: True).group.append(RANKS)


# -- 3: wholeness ----------------------------------------------------------------------------------------------------------


@breaks(3)
def torn_contribution(case: Case) -> None:
    case.pick(lambda e: e.own_stamp == e.version).contribution_digest = OTHER


@breaks(3)
def contribution_of_another_iteration(case: Case) -> None:
    e = case.pick(lambda e: 0 < e.own_stamp < e.version and not case.schedule.is_sync(e.own_stamp))
    e.contribution_digest = case.iteration[e.rank, e.own_stamp - 1].published_digest


@breaks(3)
def contribution_without_the_sync(case: Case) -> None:
    e = case.pick(lambda e: case.schedule.is_sync(e.own_stamp))
    e.contribution_digest = case.iteration[e.rank, e.own_stamp].published_digest


@breaks(3)
def torn_result(case: Case) -> None:
    case.join(lambda a: a.fresh is False).merged_digest = OTHER


@breaks(3)
def another_initial_model(case: Case) -> None:
    case.trace.starts[next(e.rank for e in case.trace.executions if e.own_stamp == NONE)].initial_digest = OTHER


@breaks(3)
def initial_model_unknown(case: Case) -> None:
    del case.trace.starts[1]


@breaks(3, close_early=True)
def stamp_of_what_was_never_published(case: Case) -> None:
    last = {a.rank: a.iteration for a in case.trace.iterations}
    e = case.pick(lambda e: e.version > last.get(e.rank, NONE))
    e.own_stamp = e.version


@breaks(3, close_early=True)
def torn_contribution_of_a_closed_rank(case: Case) -> None:
    syncs = (e for e in case.trace.executions if case.schedule.is_sync(e.version))
    next(e for e in syncs if (e.rank, e.version) not in case.iteration).contribution_digest = OTHER


@breaks(3)
def contribution_digest_missing(case: Case) -> None:
    case.pick(lambda e: True).contribution_digest = None


@breaks(3)
def model_digest_missing(case: Case) -> None:
    case.join(lambda a: True).model_digest = None


# -- 4: freshness ----------------------------------------------------------------------------------------------------------


@breaks(4)
def late_called_fresh(case: Case) -> None:
    case.join(lambda a: a.fresh is False and a.merged_version == a.iteration).fresh = True


@breaks(4)
def fresh_called_late(case: Case) -> None:
    case.join(lambda a: a.fresh is True).fresh = False


@breaks(4)
def fresh_merges_an_older_version(case: Case) -> None:
    a = case.join(lambda a: a.fresh is True)
    case.remerge(a, a.iteration - 1)


@breaks(4)
def late_merges_an_older_version(case: Case) -> None:
    a = case.join(lambda a: a.fresh is False and (a.merged_version or 0) > a.iteration)
    assert a.merged_version is not None
    case.remerge(a, a.merged_version - 1)


@breaks(4)
def late_merges_before_its_own_version(case: Case) -> None:
    a = case.join(lambda a: a.fresh is False)
    case.remerge(a, a.iteration - 1)


@breaks(4)
def late_waits_for_one_begun_after(case: Case) -> None:
    def next_begun(a: Iteration) -> int:
        after = case.merged(a, 1)
        return NONE if after is None else after.started_ns

    a = case.join(lambda a: a.fresh is False and next_begun(a) > a.arrival_ns)
    after = case.merged(a, 1)
    assert after is not None
    case.remerge(a, after.version)
    a.return_ns, a.sequence = max(a.return_ns, after.completed_ns), after.sequence + 1


@breaks(4)
def late_merges_nothing(case: Case) -> None:
    a = case.join(lambda a: a.fresh is False)
    a.merged_version = a.merged_digest = None


@breaks(4, merge_once=True)
def merged_twice(case: Case) -> None:
    a = case.join(lambda a: a.fresh is False and a.merged_version is None)
    before = [b.merged_version for b in case.trace.iterations if b.rank == a.rank and b.iteration < a.iteration]
    case.remerge(a, max(version for version in before if version is not None))


@breaks(4, merge_once=True)
def a_newer_version_not_merged(case: Case) -> None:
    a = case.join(lambda a: a.fresh is False and a.merged_version is not None)
    a.merged_version = a.merged_digest = None


@breaks(4, merge_once=True)
def first_late_merge_left_out(case: Case) -> None:
    a = next(a for a in case.trace.iterations if a.iteration == 0 and a.fresh is False)
    a.merged_version = a.merged_digest = None


# -- 5: bounded staleness --------------------------------------------------------------------------------------------------


@breaks(5)
def older_than_the_last_sync(case: Case) -> None:
    e = case.pick(case.late_join)
    case.contribute(e, e.version // SYNC_PERIOD * SYNC_PERIOD - 2)


@breaks(5)
def older_than_the_newest(case: Case) -> None:
    e = case.pick(lambda e: e.own_stamp % SYNC_PERIOD in (1, 2, 3) and e.own_stamp < e.version)
    case.contribute(e, e.own_stamp - 1)


@breaks(5)
def from_the_future(case: Case) -> None:
    e = case.pick(case.late_join)
    case.contribute(e, e.version + 1)


@breaks(5)
def published_after_the_start(case: Case) -> None:
    def not_yet(e: Execution) -> bool:
        own = case.iteration[e.rank, e.version - 1]
        return own.arrival_ns > e.started_ns and not case.schedule.is_sync(own.iteration)

    e = case.pick(not_yet)
    case.contribute(e, e.version - 1)


# -- 6: consistency --------------------------------------------------------------------------------------------------------


@breaks(6)
@breaks(6, algorithm="local_sgd")
def another_model_after_a_sync(case: Case) -> None:
    case.iteration[4, 2 * SYNC_PERIOD - 1].model_digest = OTHER


# -- 7: progress -----------------------------------------------------------------------------------------------------------


@breaks(7)
def started_before_activated(case: Case) -> None:
    e = case.pick(lambda e: True)
    e.activated_ns = e.started_ns + 1


@breaks(7)
def completed_before_started(case: Case) -> None:
    e = case.pick(lambda e: True)
    e.completed_ns = e.started_ns - 1


@breaks(7, algorithm="local_sgd")
def returned_before_arriving(case: Case) -> None:
    a = case.join(lambda a: True)
    a.return_ns = a.arrival_ns - 1


@breaks(7)
def returned_before_the_sum_was_complete(case: Case) -> None:
    a = case.join(lambda a: a.fresh is True and case.own(a).completed_ns > a.arrival_ns)
    a.return_ns = case.own(a).completed_ns - 1


@breaks(7)
def returned_before_in_causal_order(case: Case) -> None:
    a = case.join(lambda a: a.fresh is True)
    a.sequence = case.own(a).sequence - 1


@breaks(7)
def waited_for_its_own_arrival(case: Case) -> None:
    def free_ns(a: Iteration) -> int:
        before = case.execution[a.rank, a.iteration - 1]
        return max(before.completed_ns, before.read_ns or 0)

    a = case.join(lambda a: a.fresh is True and free_ns(a) < a.arrival_ns)
    case.own(a).activated_ns = a.arrival_ns - 1


# -- 8: determinism --------------------------------------------------------------------------------------------------------


@breaks(8, group_size=1)
def equal_contributions_another_sum(case: Case) -> None:
    def twin(e: Execution) -> Execution | None:
        return case.execution.get((e.rank, e.version + 1))

    def alike(e: Execution) -> bool:
        other = twin(e)
        return other is not None and other.contribution_digest == e.contribution_digest and not any(case.merges(e))

    case.pick(alike).sum_digest = OTHER
