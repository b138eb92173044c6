"""The rules of the decision machine, one at a time. That they hold together in every order is the explorer's business."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wagma.core.protocol import DEFAULT_FINISH, NONE, Complete, Forward, Machine, Output, Start, dimensions, neighbour
from wagma.core.schedule import Schedule
from wagma.errors import ProtocolError

FOUR = Schedule(4, 2, 3)  # versions 0, 1, sync 2, 3, 4, sync 5


def starts(outputs: list[Output]) -> list[Start]:
    return [output for output in outputs if isinstance(output, Start)]


def completes(outputs: list[Output]) -> list[Complete]:
    return [output for output in outputs if isinstance(output, Complete)]


def execute(machine: Machine, version: int) -> list[Output]:
    """The version is executed and read."""
    return machine.exec_done(version) + machine.read_done()


def iterate(machine: Machine, version: int) -> list[Output]:
    """A whole iteration of a rank that is on time."""
    outputs = machine.arrive(version) + execute(machine, version)
    return outputs + machine.merge_done()


def test_activation_trees() -> None:
    assert [dimensions(p) for p in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]
    assert [neighbour(8, 5, k) for k in range(3)] == [4, 7, 1]
    assert [neighbour(7, 5, k) for k in range(3)] == [6, 0, 2]


def test_fresh_arrival_activates_starts_and_completes() -> None:
    machine = Machine(0, FOUR)
    assert machine.arrive(0) == [Forward(0, 0, 1), Forward(0, 1, 2), Start(0, 0, 1, 0, 0)]
    assert machine.exec_done(0) == [Complete(0, True, 0, 1)]
    assert machine.read_done() == []
    assert machine.merge_done() == []


def test_passive_start_contributes_the_initial_model() -> None:
    machine = Machine(1, FOUR)
    assert machine.activation(0, 0) == [Forward(0, 1, 3), Start(0, 1, 2, NONE, NONE)]


def test_late_arrival_merges_the_execution_in_progress() -> None:
    machine = Machine(1, FOUR)
    machine.activation(0, 0)
    assert machine.arrive(0) == []  # it waits for the execution, not for a rank
    assert machine.exec_done(0) == [Complete(0, False, 0, 2)]


def test_late_arrival_merges_the_newest_completed_version_at_once() -> None:
    machine = Machine(1, FOUR)
    machine.activation(1, 0)
    execute(machine, 0)
    execute(machine, 1)
    assert machine.arrive(0) == [Complete(0, False, 1, machine.result)]
    machine.merge_done()
    assert completes(machine.arrive(1)) == [Complete(1, False, 1, machine.result)]  # the same sum again, as published


def test_late_arrival_merges_no_version_begun_afterwards() -> None:
    machine = Machine(1, FOUR)
    machine.activation(0, 0)
    machine.arrive(0)
    machine.activation(1, 0)
    outputs = machine.exec_done(0)
    assert completes(outputs) == [Complete(0, False, 0, 2)]
    assert starts(outputs + machine.read_done()) == [Start(1, machine.published, machine.target, 0, 0)]


def test_merge_once_leaves_the_second_merge_out() -> None:
    machine = Machine(1, FOUR, merge_once=True)
    machine.activation(1, 0)
    execute(machine, 0)
    execute(machine, 1)
    assert machine.arrive(0) == [Complete(0, False, 1, machine.result)]
    machine.merge_done()
    assert machine.arrive(1) == [Complete(1, False, NONE, NONE)]
    assert machine.merging == NONE


def test_a_version_activates_all_before_it() -> None:
    machine = Machine(1, Schedule(4, 2, 0))
    assert starts(machine.activation(2, 1)) == [Start(0, 1, 2, NONE, NONE)]
    assert [s.version for s in starts(execute(machine, 0))] == [1]
    assert [s.version for s in starts(execute(machine, 1))] == [2]
    assert starts(execute(machine, 2)) == []


def test_second_activation_of_a_version_is_forwarded_where_the_first_was_not() -> None:
    machine = Machine(1, Schedule(7, 7, 0))
    assert machine.activation(0, 2)[:1] != [Forward(0, 0, 2)]  # the highest dimension leads no further
    assert machine.activation(0, 0) == [Forward(0, 1, 3), Forward(0, 2, 5)]
    assert machine.activation(0, 1) == []


def test_overtaken_activation_is_not_forwarded_again() -> None:
    machine = Machine(1, Schedule(4, 2, 0))
    assert machine.activation(3, 0)[0] == Forward(3, 1, 3)
    assert machine.activation(1, 0) == []


def test_next_version_waits_until_the_contribution_is_read() -> None:
    machine = Machine(1, FOUR)
    machine.activation(1, 0)
    assert starts(machine.exec_done(0)) == []
    assert [s.version for s in starts(machine.read_done())] == [1]


def test_sync_starts_on_the_own_arrival_only_and_fences_what_follows() -> None:
    machine = Machine(1, FOUR)
    machine.activation(3, 0)
    execute(machine, 0)
    assert starts(execute(machine, 1)) == []
    assert completes(machine.arrive(0))
    machine.merge_done()
    assert completes(machine.arrive(1))
    machine.merge_done()
    (start,) = starts(machine.arrive(2))
    assert (start.version, start.stamp) == (2, 2)
    outputs = machine.exec_done(2) + machine.read_done()
    assert completes(outputs) == [Complete(2, True, 2, start.target)]
    assert starts(outputs) == [Start(3, start.target, machine.target, 2, 2)]  # the result of the sync is what is published now


def test_sync_result_replaces_the_published_model() -> None:
    machine = Machine(0, FOUR)
    for version in range(3):
        iterate(machine, version)
    assert machine.published == machine.result
    assert machine.stamp == 2
    (start,) = starts(machine.activation(3, 0))
    assert (start.buffer, start.stamp) == (machine.published, 2)


def test_published_model_is_read_while_the_application_publishes_the_next() -> None:
    machine = Machine(1, FOUR)
    machine.activation(0, 0)
    machine.arrive(0)
    assert machine.reading != machine.published
    assert len({machine.published, machine.reading, machine.target}) == 3
    assert machine.live == NONE  # it waits; whatever it writes next gets a buffer when the result is merged


def test_closed_rank_takes_part_passively_and_in_syncs() -> None:
    machine = Machine(1, FOUR)
    iterate(machine, 0)
    machine.close()
    (start,) = starts(machine.activation(2, 0))
    assert (start.version, start.stamp) == (1, 0)
    (start,) = starts(execute(machine, 1))
    assert (start.version, start.stamp) == (2, 2)  # its model counts as published for the sync
    execute(machine, 2)
    assert not machine.done


def test_closing_lifts_the_fence() -> None:
    machine = Machine(1, FOUR)
    machine.activation(2, 0)
    execute(machine, 0)
    execute(machine, 1)
    assert [s.version for s in starts(machine.close())] == [2]


def test_finish_executes_what_is_left_and_ends() -> None:
    machine = Machine(1, FOUR)
    machine.close()
    assert [s.version for s in starts(machine.finish(1))] == [0]
    assert [s.version for s in starts(execute(machine, 0))] == [1]
    machine.exec_done(1)
    assert not machine.done  # peers still read
    machine.read_done()
    assert machine.done


def test_finish_of_a_run_without_arrivals() -> None:
    machine = Machine(0, FOUR)
    machine.close()
    assert machine.finish(NONE) == []
    assert machine.done


def test_one_rank_alone() -> None:
    machine = Machine(0, Schedule(1, 1, 2))
    for version in range(4):
        assert completes(iterate(machine, version))[0].fresh
    machine.close()
    machine.finish(3)
    assert machine.done


def test_syncs_only() -> None:
    machine = Machine(0, Schedule(2, 1, 3, grouped=False))
    assert starts(machine.arrive(2)) == [Start(2, 0, 1, 2, 2)]
    assert execute(machine, 2) == [Complete(2, True, 2, 1)]
    machine.merge_done()
    assert starts(machine.arrive(5))[0].version == 5


def computing(machine: Machine) -> None:
    pass


def waiting(machine: Machine) -> None:
    machine.arrive(0)


def merging(machine: Machine) -> None:
    machine.arrive(0)
    machine.exec_done(0)


def closed(machine: Machine) -> None:
    machine.close()


def finished(machine: Machine) -> None:
    machine.close()
    machine.finish(0)


@pytest.mark.parametrize(
    ("prepare", "event", "why"),
    [
        (computing, lambda m: m.arrive(1), "the next version is 0"),
        (waiting, lambda m: m.arrive(1), "still waits in version 0"),
        (merging, lambda m: m.arrive(1), "still being merged"),
        (closed, lambda m: m.arrive(0), "the rank has closed"),
        (computing, lambda m: m.activation(0, 2), "dimension 2 is not below 2"),
        (computing, lambda m: m.activation(0, -1), "dimension -1 is not below 2"),
        (computing, lambda m: m.exec_done(0), "version -1 is executing"),
        (computing, lambda m: m.exec_done(NONE), "version -1 is executing"),
        (waiting, lambda m: m.exec_done(1), "version 0 is executing"),
        (computing, lambda m: m.read_done(), "no contribution is being read"),
        (computing, lambda m: m.merge_done(), "nothing is being merged"),
        (waiting, lambda m: m.close(), "still waits in version 0"),
        (merging, lambda m: m.close(), "still being merged"),
        (closed, lambda m: m.close(), "closed already"),
        (computing, lambda m: m.finish(0), "has not closed"),
        (finished, lambda m: m.finish(1), "already ends with version 0"),
    ],
)
def test_rejected_events_leave_the_state(
    prepare: Callable[[Machine], None], event: Callable[[Machine], object], why: str
) -> None:
    machine = Machine(1, FOUR)
    prepare(machine)
    before = machine.state
    with pytest.raises(ProtocolError, match=why) as error:
        event(machine)
    assert str(error.value).startswith("rank 1: ")
    assert "\n" not in str(error.value)
    assert machine.state == before


def test_restore_gives_an_equal_machine() -> None:
    machine = Machine(1, FOUR)
    machine.activation(1, 0)
    machine.arrive(0)
    twin = Machine(1, FOUR)
    assert twin.state != machine.state
    twin.restore(machine.state)
    assert twin.state == machine.state
    assert twin.exec_done(0) == machine.exec_done(0)
    assert twin.state == machine.state
    assert twin.last == DEFAULT_FINISH
